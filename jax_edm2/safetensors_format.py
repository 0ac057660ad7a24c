"""The safetensors format: eight bytes with the length of a header, a header in JSON, and the tensors' bytes.

Read by our own few lines, since a header may come from anybody: it is bounded before anything is built of it, and every
byte of the file must belong to exactly one tensor. Specification: huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from jax_edm2 import strict_json
from jax_edm2.dtypes import DTYPES
from jax_edm2.messages import brief

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
THREADS = 2  # hashing beside the one that asks
PIECE = 2**20  # bytes read at a time, to be hashed while they are in the processor's cache
ALIGNMENT = 64  # bytes: what JAX takes over on a CPU without a copy
_SHORTER = "breaks off in {name}: it became shorter while it was read"


class FormatError(ValueError):
    """A file that is not in this format. The message is a phrase: 'is no safetensors file (...)'."""


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    dtype: str  # the format's name: F16
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    nbytes: int


class File:
    """An open file whose header is known to be sound; close it, or use it in a `with` statement.

    metadata: texts by name. entries: by the name of the tensor, in the order of the file's bytes.
    """

    def __init__(self, path: str | os.PathLike):
        """Raises: FormatError, OSError."""
        # A FIFO must not block.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(self.descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError("is no safetensors file (no regular file at all)")
            self.metadata, self.entries = _header(self.descriptor, status.st_size)
        except BaseException:
            self.close()
            raise

    def array(self, name: str) -> "np.ndarray":
        """A tensor whose dtype is one of CODES. Raises: FormatError.

        Read, and not mapped: pages that are mapped stay in the process's memory, beside what is made of them.
        """
        import numpy as np

        entry = self.entries[name]
        count = math.prod(entry.shape)
        with open(self.descriptor, "rb", closefd=False) as file:
            file.seek(entry.offset)
            array = np.fromfile(file, CODES[entry.dtype].numpy, count)
        if array.size < count:
            raise FormatError(_SHORTER.format(name=name))
        return array.reshape(entry.shape)

    def hashed_arrays(self) -> "Iterator[tuple[str, np.ndarray, str]]":
        """(name, array, sha256) of every tensor; threads read a few tensors ahead, and no more."""
        with ThreadPoolExecutor(THREADS) as pool:  # reading and hashing release the GIL
            pending: list[Future] = []
            try:
                for name in self.entries:
                    pending.append(pool.submit(self._hashed, name))
                    if len(pending) > 2 * THREADS:
                        yield pending.pop(0).result()
                while pending:
                    yield pending.pop(0).result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _hashed(self, name: str) -> "tuple[str, np.ndarray, str]":
        """A tensor, hashed while its bytes are in the processor's cache, where JAX can take it over without a copy."""
        import numpy as np

        entry, sha = self.entries[name], hashlib.sha256()
        store = np.empty(entry.nbytes + ALIGNMENT, np.uint8)
        start = -store.ctypes.data % ALIGNMENT
        data = store[start : start + entry.nbytes]
        view, done = data.data, 0
        while done < entry.nbytes:
            count = os.preadv(self.descriptor, [view[done : done + PIECE]], entry.offset + done)
            if count == 0:
                raise FormatError(_SHORTER.format(name=name))
            sha.update(view[done : done + count])
            done += count
        return name, data.view(CODES[entry.dtype].numpy).reshape(entry.shape), sha.hexdigest()

    def close(self):
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.close()


OTHERS = {
    b"\x80": "a pickle: a snapshot? edm2-convert makes a checkpoint of it",
    b"PK": "a zip archive: a truth of edm2-verify, or a file of torch.save",
}


def _header(descriptor: int, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    start = os.pread(descriptor, 8, 0)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= size - 8:
        what = next((what for magic, what in OTHERS.items() if start.startswith(magic)), "")
        why = f", but {what}" if what else f" (its {size:,} bytes do not hold the header that it announces)"
        raise FormatError(f"is no safetensors file{why}")
    if length > MOST_HEADER:
        raise FormatError(f"has a header of {length:,} bytes; {MOST_HEADER:,} are read at most")
    text = os.pread(descriptor, length, 8)
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
    return Entry(dtype, tuple(shape), start + offsets[0], nbytes)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)
