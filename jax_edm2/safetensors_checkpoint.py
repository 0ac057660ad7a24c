"""Checkpoints that are safetensors files: one network each, written as a stream and read tensor by tensor.

The keys are `/`-joined tree paths (`params/unet/out_gain`), and the metadata has the single key `edm2`. Reading and
writing needs no jax until arrays are asked for.
"""

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard, cast

from jax_edm2.dtypes import DTYPES
from jax_edm2.files import whole_or_nothing
from jax_edm2.messages import printable
from jax_edm2.record import KEY, Record, tensors_digest
from jax_edm2.safetensors_format import CODES, File, LocalFile
from jax_edm2.tensors import CheckpointError, Digest, Hashes, Tensor, refuse_to_lose, stored_dtype

if TYPE_CHECKING:
    import jax
    from jax.sharding import Sharding

    from jax_edm2.placement import Placement

THREADS = 3  # that read, hash and write, and one of them flushes
FLUSH_EVERY = 0.03  # seconds
ROOM = 16  # bytes more in a header for what becomes known while tensors are written


class SafetensorsCheckpoint:
    """An open file: its record, its shapes by path, and its variables when they are asked for. Close it in the end."""

    def __init__(self, path: Path | str):
        """path: of a file, or a URL that `is_remote`. Raises: FormatError, CheckpointError, RecordError, OSError."""
        self.path, self._file = path, File(path)
        try:
            for name, entry in self._file.entries.items():
                if entry.dtype not in CODES:
                    known = ", ".join(CODES)
                    raise CheckpointError(f"{path}: {printable(name[:200])} is {entry.dtype}; weights are {known}")
            if KEY not in self._file.metadata:
                raise CheckpointError(f"{path}: is no checkpoint of this project: it has no '{KEY}' metadata")
            self.record = Record.from_json(self._file.metadata[KEY])
        except BaseException:
            self._file.close()
            raise
        self.entries = self._file.entries
        self.shapes = {name: entry.shape for name, entry in self.entries.items()}

    def in_parts(self, where: "Placement") -> bool:
        """Are there tensors of which this process has parts alone, so that no more of them is read?"""
        return any(self._in_parts(sharding) for sharding in where.values())

    def variables(self, dtype: Any, where: "Placement", digest: Digest | None) -> "dict[str, jax.Array]":
        """All variables by path, as `dtype` (None: as stored), on the devices of `where`; hashed into `digest`.

        A few tensors are on the host at a time. digest: None where `in_parts`. Raises: FormatError, CheckpointError.
        """
        from jax_edm2.parts import Parts
        from jax_edm2.placement import placed

        parts = {
            name: Parts(self.entries[name], sharding) for name, sharding in where.items() if self._in_parts(sharding)
        }
        wanted = [
            (parts[name].entry, box) if name in parts else (entry, entry.whole)
            for name, entry in self.entries.items()
            for box in (parts[name].boxes if name in parts else [entry.whole])
        ]
        arrays = self._file.arrays(wanted, hashed=digest is not None)
        found = {}
        for name in self.entries:
            if name in parts:
                found[name] = parts[name].array({box: next(arrays)[0] for box in parts[name].boxes}, dtype)
                continue
            array, sha256 = next(arrays)
            if digest is not None and sha256 is not None:
                digest.add(name, str(array.dtype), array.shape, sha256)
            found[name] = placed(array if dtype is None else array.astype(dtype), where[name])
        return found

    def _in_parts(self, sharding: "Sharding | None") -> "TypeGuard[Sharding]":
        """Of a file on this disk all of every tensor is read, and held to a digest."""
        if sharding is None or isinstance(self._file.source, LocalFile):
            return False
        return not (sharding.is_fully_addressable or sharding.is_fully_replicated)

    @property
    def descriptor(self) -> int:
        """Of a file on this disk."""
        return cast(LocalFile, self._file.source).descriptor

    def close(self):
        self._file.close()


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Stream `tensors` into a file, never holding more than a chunk, and return the record that was written.

    That is `record` with dtype and digest set, through `finish`, which may add what is only known when all tensors
    have been read (a hash of the source) as long as that makes the record no more than a few bytes longer.
    Raises: CheckpointError if `path` is a folder, link or device; FileExistsError unless `overwrite`; OSError.
    """
    refuse_to_lose(Path(path))
    record = dataclasses.replace(record, dtype=stored_dtype(tensors))
    with whole_or_nothing(Path(path), overwrite=overwrite) as temporary:
        return _write(temporary, tensors, record, finish)


def _write(path: Path, tensors: Mapping[str, Tensor], record: Record, finish: Callable[[Record], Record]) -> Record:
    """`write_safetensors`, where there is no file yet. record: all but the digest."""
    with Writing(path, tensors, record) as writing:

        def write_one(name):
            for chunk in tensors[name].chunks():
                writing.write(name, chunk)

        done = threading.Event()
        with ThreadPoolExecutor(THREADS) as pool:  # reading, hashing and writing all release the GIL
            flushed = pool.submit(_flush, writing.descriptor, done)
            try:
                _all(pool, write_one, writing.order)
            finally:
                done.set()
            flushed.result()
        return writing.finish(finish)


class Writing:
    """A safetensors file in the making: its tensors' bytes come piece by piece, of each tensor in order, by one thread.

    If there is a file, another process has begun it, and what it did is told to `hashes`.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], record: Record):
        """tensors: what they are; their `chunks` are not asked for. record: all but the digest. Raises: OSError."""
        # The largest items first, so that every tensor is aligned; then by name.
        self.order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].size, name))
        self._tensors, self._record = tensors, record
        self._header, self._offsets = self._head(dataclasses.replace(record, digest=tensors_digest({})))
        self.hashes = Hashes(tensors)
        self._file = open(path, "r+b" if path.exists() else "wb")  # noqa: SIM115

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def write(self, name: str, chunk: "bytes | memoryview"):
        self.hashes.update(name, chunk)
        write_at(self.descriptor, chunk, len(self._header) + self._offsets[name])
        self._offsets[name] += len(chunk)

    def finish(self, complete: Callable[[Record], Record]) -> Record:
        """The record with its digest, through `complete`, goes into the file, which is then on the disk."""
        record = complete(dataclasses.replace(self._record, digest=self.hashes.digest))
        final, _ = self._head(record, len(self._header))
        write_at(self.descriptor, final, 0)
        os.fsync(self.descriptor)
        return record

    def _head(self, record: Record, length: int | None = None) -> tuple[bytes, dict[str, int]]:
        return _write_header(self._tensors, self.order, record, length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self._file.close()


def _write_header(
    tensors: Mapping[str, Tensor], order: list[str], record: Record, length: int | None = None
) -> tuple[bytes, dict[str, int]]:
    """The beginning of the file, of `length` bytes if that is given, and where each tensor lies after it."""
    entries: dict[str, Any] = {"__metadata__": {KEY: record.to_json()}}
    offsets = {}
    offset = 0
    for name in order:
        offsets[name], end = offset, offset + tensors[name].nbytes
        code = DTYPES[tensors[name].dtype].code
        entries[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    size = -(-(len(text) + ROOM) // 8) * 8 if length is None else length - 8
    if len(text) > size:
        raise ValueError("the metadata record became longer while the tensors were written")
    return size.to_bytes(8, "little") + text.ljust(size), offsets


def _all(pool: Executor, function: Callable, items: Iterable) -> list:
    """Results of `function` on every item; the first error cancels what has not begun."""
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _flush(descriptor: int, done: threading.Event):
    """Keep the disk busy while the file is still being written, so that little is left for the last fsync."""
    while not done.wait(FLUSH_EVERY):
        os.fsync(descriptor)


def write_at(descriptor: int, data: bytes | memoryview, offset: int):
    """All of it, whatever the system takes at once."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
