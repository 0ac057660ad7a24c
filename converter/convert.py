"""From open weights to a file of any format: names, dtype, metadata, and the hash of the source beside the copying."""

import dataclasses
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jax_edm2 import dtypes
from jax_edm2.checkpoint import WRITERS
from jax_edm2.record import Record, RecordError, Sampler, Source
from jax_edm2.tensors import Tensor

from . import embedded, presets
from .checkpoint_weights import CheckpointWeights
from .errors import ConverterError
from .finite import count_not_finite, get_ready
from .opening import parts
from .snapshot import Snapshot
from .to_snapshot import write_like, write_snapshot
from .to_training_state import write_training_state
from .training_state import TrainedWeights, TrainingState
from .weights import CHUNK, Weights

FORMATS: dict[str, Callable[..., Record]] = {**WRITERS, "pkl": write_snapshot, "pt": write_training_state}
DTYPES = ("keep", "float32", "float16", "bfloat16")
UNKNOWN = "0" * 64  # the hash of a file that is not yet read
NVIDIA_LICENSE = "CC BY-NC-SA 4.0"

FILE_NAME = re.compile(r"-(?P<kimg>\d{7,8})-(?P<std>\d\.\d{3})\.pkl$")  # of every snapshot that NVlabs' code writes


class ConvertError(ConverterError):
    """A conversion that cannot be done as asked."""


def checkpoint_tensors(
    weights: Weights,
    dtype: str = "keep",
    progress: Callable[[int], object] = lambda count: None,
    not_finite: dict[str, int] | None = None,
) -> dict[str, Tensor]:
    """The tensors by path in the JAX tree, as `dtype`; `progress` is told of bytes as they are read.

    not_finite: gets how many values of each are NaN or infinite, when it is read.
    """

    def tensor(name):
        stored, where = weights.tensors[name], f"{weights.path}: {name}"
        wanted = stored.dtype if dtype == "keep" else dtype

        def chunks():
            count = 0
            for chunk in weights.chunks(name):
                if not_finite is not None:
                    count += count_not_finite(chunk, stored.dtype)
                yield chunk if wanted == stored.dtype else _cast(chunk, stored.dtype, wanted, where)
                progress(len(chunk))
            if count and not_finite is not None:
                not_finite[name] = count

        return Tensor(wanted, stored.shape, chunks)

    return {weights.tree_path(name): tensor(name) for name in weights.tensors}


def describe(weights: Weights, name: str | None = None, sampler: Sampler | None = None) -> Record:
    """The metadata record of a checkpoint of `weights`, but for hashes and dtype, which come with the conversion.

    name: the file's name or URL, if its path is not what it is known by. sampler: settings it is to be sampled with.
    Raises: ConvertError if a file says what no record can hold.
    """
    if isinstance(weights, CheckpointWeights):
        return weights.record
    name = name or weights.path.name
    try:
        return Record(
            config=weights.config,
            source=Source(name, UNKNOWN, *_time(weights, name)),
            training=weights.training if isinstance(weights, TrainingState) else None,
            assumed=weights.assumed or None if isinstance(weights, TrainingState | TrainedWeights) else None,
            code=embedded.identify(weights.source) if isinstance(weights, Snapshot) else None,
            encoder=weights.encoder,
            loss=weights.loss,
            sampler=sampler or Sampler(),
            license=NVIDIA_LICENSE if presets.FILE_NAME.fullmatch(name.rpartition("/")[2]) else None,
        )
    except RecordError as error:
        raise ConvertError(f"{weights.path}: no checkpoint could say of it what it says of itself: {error}") from None


def _time(weights: Weights, name: str) -> tuple[int | None, float | None]:
    """How many thousand images training had seen, and the relative standard deviation of the average, if known."""
    if isinstance(weights, TrainingState):
        return weights.training.images // 1000, None
    if isinstance(weights, TrainedWeights):
        return weights.training.images // 1000, weights.std
    match = FILE_NAME.search(name)
    return (int(match["kimg"]), float(match["std"])) if match else (None, None)


def convert(
    weights: Weights,
    target: str | os.PathLike,
    *,
    format: str = "safetensors",
    dtype: str = "keep",
    like: Snapshot | None = None,
    overwrite: bool = False,
    name: str | None = None,
    sampler: Sampler | None = None,
    progress: Callable[[int], object] = lambda count: None,
    not_finite: dict[str, int] | None = None,
) -> Record:
    """Write `weights` in another format at `target`, whole or not at all, and return the metadata record.

    format: one of FORMATS. dtype: of the tensors, one of DTYPES. like: the snapshot that a .pkl is to be a copy of but
    for the tensors' values, in its dtype. name, sampler: for the record (`describe`). progress: called with the number
    of bytes read. not_finite: gets the tensors that have values that are NaN or infinite, which are kept, and how many.
    Raises: ConvertError, SnapshotError, WriteError, CheckpointError; FileExistsError unless `overwrite`; OSError.
    """
    target = Path(target)
    for other in (weights, like) if like else (weights,):
        if target.exists() and target.samefile(other.path):
            raise ConvertError(f"{target}: is the file that is read; choose another output")
    if not target.parent.is_dir():
        raise ConvertError(f"{target}: the folder {target.parent} does not exist")
    if parts(weights) and dtype not in ("keep", "float32"):
        raise ConvertError(f"{weights.path}: a training state stays in float32; --weights takes a network out of it")
    record = describe(weights, name, sampler)  # before anything is written
    not_finite = {} if not_finite is None else not_finite
    wanted = _dtype_of(like) if like else dtype
    tensors = checkpoint_tensors(weights, wanted, progress, not_finite)
    needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(target.parent).free
    if needed > free:
        raise ConvertError(
            f"{target}: needs {needed / 1e6:,.1f} MB, and there are {free / 1e6:,.1f} MB free; make room"
        )
    with SourceHash(weights) as source_hash:
        get_ready(needed)

        def finish(record):
            if isinstance(weights, CheckpointWeights):
                weights.check()
            elif record.source is not None:
                record = dataclasses.replace(
                    record, source=dataclasses.replace(record.source, sha256=source_hash.result())
                )
            return dataclasses.replace(record, not_finite=sum(not_finite.values()))

        write = partial(write_like, like) if like else FORMATS[format]
        return write(target, tensors, record, overwrite=overwrite, finish=finish)


def _dtype_of(original: Snapshot) -> str:
    """Raises: ConvertError if its tensors have several."""
    found = {record.dtype for record in original.tensors.values()}
    if len(found) > 1:
        raise ConvertError(f"{original.path}: has its tensors in several dtypes; nothing is written like it")
    return found.pop()


class SourceHash:
    """The sha256 of the file that weights are in, computed by a thread while the `with` body does something else.

    Of checkpoints it is not computed: their records have the hash of what they were made from.
    """

    def __init__(self, weights: Weights):
        self._weights = weights
        self._stop = threading.Event()
        self._sha = hashlib.sha256()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        if not isinstance(self._weights, CheckpointWeights):
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self):
        try:
            file, buffer = self._weights.file, memoryview(bytearray(CHUNK))
            assert file is not None
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
            raise ConvertError(f"{self._weights.path}: {self._error}")
        return self._sha.hexdigest()


def _cast(chunk: memoryview, stored: str, wanted: str, name: str) -> memoryview:
    import numpy as np

    values = np.frombuffer(chunk, dtypes.DTYPES[stored].numpy)
    with np.errstate(over="ignore"):
        result = values.astype(dtypes.DTYPES[wanted].numpy)
    if (np.isfinite(values) & ~np.isfinite(result.astype(np.float32))).any():
        raise ConvertError(f"{name} has values that overflow {wanted}; use --dtype keep or bfloat16")
    return result.view(np.uint8).data
