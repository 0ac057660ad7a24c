"""The safetensors format: eight bytes with the length of a header, a header in JSON, and the tensors' bytes.

Read by our own few lines, since a header may come from anybody: it is bounded before anything is built of it, and every
byte of the file must belong to exactly one tensor. Specification: huggingface.co/docs/safetensors, "Format".
"""

import dataclasses
import hashlib
import itertools
import math
import operator
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from jax_edm2 import strict_json
from jax_edm2.dtypes import DTYPES
from jax_edm2.messages import brief
from jax_edm2.remote import RemoteFile, is_remote, open_remote

if TYPE_CHECKING:
    import numpy as np

CODES = {dtype.code: dtype for dtype in DTYPES.values()}  # of what weights may be
SIZES = {  # bytes, of everything that the format knows
    **{code: dtype.size for code, dtype in CODES.items()},
    **dict.fromkeys(("I64", "U64", "C64"), 8),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
MOST_HEADER = 4 * 2**20  # bytes; XXL's has 40,000
MOST_TENSORS = 10_000
MOST_DIMENSIONS = 8
START = 2**16  # bytes that are read first: of all published sizes, the whole header
ALIGNMENT = 64  # bytes: what JAX takes over on a CPU without a copy
_SHORTER = "breaks off in {name}: it became shorter while it was read"


class FormatError(ValueError):
    """A file that is not in this format. The message is a phrase: 'is no safetensors file (...)'."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    name: str
    dtype: str  # the format's name: F16
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    nbytes: int

    @property
    def whole(self) -> "Box":
        """All of it."""
        return tuple((0, length) for length in self.shape)

    @property
    def flat(self) -> "Entry":
        """It as a tensor of one axis."""
        return dataclasses.replace(self, shape=(math.prod(self.shape),))

    def in_one_piece(self, box: "Box") -> bool:
        """Are the bytes of a part next to each other?"""
        return len(list(itertools.islice(_runs(self, box), 2))) < 2


Box = tuple[tuple[int, int], ...]  # a part of a tensor: of every axis, its first index and the one after its last


class LocalFile:
    """A regular file on this disk, read by ranges."""

    threads = 2  # that read and hash beside the one that asks
    piece = 2**20  # bytes read at a time, to be hashed while they are in the processor's cache

    def __init__(self, path: str | os.PathLike):
        """Raises: FormatError, OSError."""
        # A FIFO must not block.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise FormatError("is no safetensors file (no regular file at all)")
        self.size = status.st_size

    def read_into(self, view: memoryview, offset: int) -> int:
        """How many bytes from `offset` on are now at the beginning of `view`: none, where the file ends."""
        return os.preadv(self.descriptor, [view], offset)

    def close(self):
        os.close(self.descriptor)


class File:
    """An open file whose header is known to be sound; close it, or use it in a `with` statement.

    metadata: texts by name. entries: by the name of the tensor, in the order of the file's bytes.
    """

    def __init__(self, path: str | os.PathLike):
        """path: also a URL that `is_remote`. Raises: FormatError, OSError, CheckpointError."""
        self.source: LocalFile | RemoteFile = open_remote(os.fspath(path)) if is_remote(path) else LocalFile(path)
        try:
            self.metadata, self.entries = _header(self.source)
        except BaseException:
            self.close()
            raise

    def array(self, name: str) -> "np.ndarray":
        """All of a tensor, whose dtype is one of CODES. Raises: as `arrays`."""
        entry = self.entries[name]
        return self._array(entry, entry.whole, hashed=False)[0]

    def arrays(self, wanted: Iterable[tuple[Entry, Box]], *, hashed: bool) -> "Iterator[tuple[np.ndarray, str | None]]":
        """Of each tensor's part, in order, (array, sha256); threads read a few of them ahead, and no more.

        Of these bytes alone are read. Dtypes are those of CODES. Raises: FormatError, OSError, CheckpointError.
        """
        threads = self.source.threads
        with ThreadPoolExecutor(threads) as pool:  # reading and hashing release the GIL
            pending: list[Future] = []
            try:
                for entry, box in wanted:
                    pending.append(pool.submit(self._array, entry, box, hashed))
                    if len(pending) > threads + 2:
                        yield pending.pop(0).result()
                while pending:
                    yield pending.pop(0).result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _array(self, entry: Entry, box: Box, hashed: bool) -> "tuple[np.ndarray, str | None]":
        """Hashed while its bytes are in the processor's cache, where JAX can take it over without a copy.

        Read, and not mapped: pages that are mapped stay in the process's memory, beside what is made of them.
        """
        import numpy as np

        sha = hashlib.sha256()
        shape = tuple(last - first for first, last in box)
        store = np.empty(math.prod(shape) * SIZES[entry.dtype] + ALIGNMENT, np.uint8)
        start = -store.ctypes.data % ALIGNMENT
        data = store[start : start + len(store) - ALIGNMENT]
        rest = data.data
        for offset, length in _runs(entry, box):
            end = offset + length
            while offset < end:
                count = self.source.read_into(rest[: min(self.source.piece, end - offset)], offset)
                if count == 0:
                    raise FormatError(_SHORTER.format(name=entry.name))
                if hashed:
                    sha.update(rest[:count])
                rest, offset = rest[count:], offset + count
        return data.view(CODES[entry.dtype].numpy).reshape(shape), sha.hexdigest() if hashed else None

    def close(self):
        if isinstance(self.source, LocalFile):  # else there are the libraries' connections alone
            self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.close()


OTHERS = {
    b"\x80": "a pickle: a snapshot? edm2-convert makes a checkpoint of it",
    b"PK": "a zip archive: a truth of edm2-verify, or a file of torch.save",
}


def _header(source: LocalFile | RemoteFile) -> tuple[dict[str, str], dict[str, Entry]]:
    size = source.size
    beginning = _read(source, 0, min(size, START))
    start = beginning[:8]
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= size - 8:
        what = next((what for magic, what in OTHERS.items() if start.startswith(magic)), "")
        why = f", but {what}" if what else f" (its {size:,} bytes do not hold the header that it announces)"
        raise FormatError(f"is no safetensors file{why}")
    if length > MOST_HEADER:
        raise FormatError(f"has a header of {length:,} bytes; {MOST_HEADER:,} are read at most")
    text = beginning[8 : 8 + length]
    text += _read(source, 8 + len(text), length - len(text))
    if len(text) < length or text[:1] != b"{":
        raise FormatError("is no safetensors file (its header is no JSON object)")
    try:
        header = strict_json.loads(text, most_bytes=MOST_HEADER, most_values=20 * MOST_TENSORS)
    except strict_json.JSONError as error:
        raise FormatError(f"is no safetensors file (its header {error})") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("is no safetensors file (its metadata is not all text)")
    if len(header) > MOST_TENSORS:
        raise FormatError(f"holds more than {MOST_TENSORS:,} tensors")
    found = {name: _entry(name, value, 8 + length) for name, value in header.items()}
    entries = dict(sorted(found.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = 8 + length
    for name, entry in entries.items():
        if entry.offset != end:
            raise FormatError(f"is no safetensors file ({brief(name)} does not begin where the tensor before it ends)")
        end += entry.nbytes
    if end != size:
        raise FormatError(f"is no safetensors file (its header speaks of {end:,} bytes, and it has {size:,})")
    return metadata, entries


def _read(source: LocalFile | RemoteFile, offset: int, count: int) -> bytes:
    """As many of `count` bytes as there are."""
    data, done = bytearray(count), 0
    while done < count and (more := source.read_into(memoryview(data)[done:], offset + done)):
        done += more
    return bytes(data[:done])


def _runs(entry: Entry, box: Box) -> Iterator[tuple[int, int]]:
    """(first byte in the file, number of bytes) of all that a part is, in the order of its own bytes."""
    steps = [math.prod(entry.shape[axis + 1 :]) * SIZES[entry.dtype] for axis in range(len(box))]  # bytes
    inner = len(box)  # what is after the last axis that is cut is in one piece
    while inner and box[inner - 1] == (0, entry.shape[inner - 1]):
        inner -= 1
    if inner == 0:
        yield entry.offset, entry.nbytes
        return
    *outer, (first, last) = box[:inner]
    step = steps[inner - 1]
    for index in itertools.product(*(range(*ends) for ends in outer)):
        yield entry.offset + sum(map(operator.mul, index, steps)) + first * step, (last - first) * step


def _entry(name: str, value: Any, start: int) -> Entry:
    what = f"is no safetensors file ({brief(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what} has no dtype, shape and data_offsets, or more than these)")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise FormatError(f"{what} has the unknown dtype {brief(dtype)})")
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise FormatError(f"{what} has a malformed shape or malformed offsets)")
    nbytes = math.prod(shape) * SIZES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(f"{what} of shape {brief(shape)} has {offsets[1] - offsets[0]:,} bytes, not {nbytes:,})")
    return Entry(name, dtype, tuple(shape), start + offsets[0], nbytes)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)
