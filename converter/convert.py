"""From an open snapshot to a checkpoint: names, dtype, metadata, and the hash of the source beside the copying."""

import dataclasses
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from jax_edm2 import dtypes
from jax_edm2.checkpoint import WRITERS
from jax_edm2.record import Record, RecordError, Sampler, Source
from jax_edm2.tensors import Tensor

from . import embedded, presets
from .errors import ConverterError
from .finite import count_not_finite, get_ready
from .names import jax_path
from .snapshot import CHUNK, Snapshot

DTYPES = ("keep", "float32", "float16", "bfloat16")
NVIDIA_LICENSE = "CC BY-NC-SA 4.0"

FILE_NAME = re.compile(r"-(?P<kimg>\d{7,8})-(?P<std>\d\.\d{3})\.pkl$")  # of every snapshot that NVlabs' code writes


class ConvertError(ConverterError):
    """A conversion that cannot be done as asked."""


def checkpoint_tensors(
    snapshot: Snapshot,
    dtype: str = "keep",
    progress: Callable[[int], object] = lambda count: None,
    not_finite: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """The snapshot's tensors by path in the JAX tree, as `dtype`; `progress` is told of bytes as they are read.

    not_finite: gets how many values of each are NaN or infinite, when it is read.
    """

    def tensor(name):
        stored, where = snapshot.tensors[name], f"{snapshot.path}: {name}"
        wanted = stored.dtype if dtype == "keep" else dtype

        def chunks():
            count = 0
            for chunk in snapshot.chunks(name):
                if not_finite is not None:
                    count += count_not_finite(chunk, stored.dtype)
                yield chunk if wanted == stored.dtype else _cast(chunk, stored.dtype, wanted, where)
                progress(len(chunk))
            if count and not_finite is not None:
                not_finite[name] = count

        return Tensor(wanted, stored.shape, chunks)

    return {jax_path(name): tensor(name) for name in snapshot.tensors}


def describe(snapshot: Snapshot, name: str | None = None, sampler: Sampler | None = None) -> Record:
    """The metadata record of a snapshot's checkpoint, but for hashes and dtype, which come with the conversion.

    name: the file's name or URL, if its path is not what it is known by. sampler: settings it is to be sampled with.
    Raises: ConvertError if the snapshot says what no record can hold.
    """
    name = name or snapshot.path.name
    match = FILE_NAME.search(name)
    published = presets.FILE_NAME.fullmatch(name.rpartition("/")[2])
    try:
        return Record(
            config=snapshot.config,
            source=Source(
                name,
                sha256="0" * 64,
                kimg=int(match["kimg"]) if match else None,
                ema_std=float(match["std"]) if match else None,
            ),
            code=embedded.identify(snapshot.source),
            encoder=snapshot.encoder,
            loss=snapshot.loss,
            sampler=sampler or Sampler(),
            license=NVIDIA_LICENSE if published else None,
        )
    except RecordError as error:
        raise ConvertError(f"{snapshot.path}: no checkpoint could say of it what it says of itself: {error}") from None


def convert(
    snapshot: Snapshot,
    target: str | os.PathLike,
    *,
    format: str = "safetensors",
    dtype: str = "keep",
    overwrite: bool = False,
    name: str | None = None,
    sampler: Sampler | None = None,
    progress: Callable[[int], object] = lambda count: None,
    not_finite: dict[str, int] | None = None,
) -> Record:
    """Write `snapshot` as a checkpoint at `target`, whole or not at all, and return its metadata record.

    format: safetensors or orbax. dtype: of the tensors, one of DTYPES. name, sampler: for the record (`describe`).
    progress: called with the number of bytes read. not_finite: gets the snapshot's tensors that have values that are
    NaN or infinite, which are kept, and how many.
    Raises: ConvertError, SnapshotError; FileExistsError unless `overwrite`; OSError.
    """
    target = Path(target)
    if target.exists() and os.path.samestat(target.stat(), os.fstat(snapshot.file.descriptor)):
        raise ConvertError(f"{target}: is the snapshot itself; choose another output")
    if not target.parent.is_dir():
        raise ConvertError(f"{target}: the folder {target.parent} does not exist")
    record = describe(snapshot, name, sampler)  # before anything is written
    not_finite = {} if not_finite is None else not_finite
    tensors = checkpoint_tensors(snapshot, dtype, progress, not_finite)
    needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(target.parent).free
    if needed > free:
        raise ConvertError(
            f"{target}: needs {needed / 1e6:,.1f} MB, and there are {free / 1e6:,.1f} MB free; make room"
        )
    with SourceHash(snapshot) as source_hash:
        get_ready(needed)

        def finish(record):
            source = dataclasses.replace(record.source, sha256=source_hash.result())
            return dataclasses.replace(record, source=source, not_finite=sum(not_finite.values()))

        return WRITERS[format](target, tensors, record, overwrite=overwrite, finish=finish)


class SourceHash:
    """The sha256 of a snapshot's file, computed by a thread while the `with` body does something else."""

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._stop = threading.Event()
        self._sha = hashlib.sha256()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        try:
            file, buffer = self._snapshot.file, memoryview(bytearray(CHUNK))
            for offset in range(0, file.size, CHUNK):
                part = buffer[: file.size - offset]
                file.read_into(part, offset)
                self._sha.update(part)
                if self._stop.is_set():
                    return
        except Exception as error:
            self._error = error

    def result(self) -> str:
        self._thread.join()
        if self._error is not None:
            raise ConvertError(f"{self._snapshot.path}: {self._error}")
        return self._sha.hexdigest()


def _cast(chunk: memoryview, stored: str, wanted: str, name: str) -> memoryview:
    import numpy as np

    values = np.frombuffer(chunk, dtypes.DTYPES[stored].numpy)
    with np.errstate(over="ignore"):
        result = values.astype(dtypes.DTYPES[wanted].numpy)
    if (np.isfinite(values) & ~np.isfinite(result.astype(np.float32))).any():
        raise ConvertError(f"{name} has values that overflow {wanted}; use --dtype keep or bfloat16")
    return result.view(np.uint8).data
