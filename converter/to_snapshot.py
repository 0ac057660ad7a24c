"""Checkpoints written as snapshots of NVlabs' container, for its tools to open. Needs no torch.

The network's source in the file is `torch_ref`'s, which is ours, read as text; or, with `write_like`, all but the
tensors' values is a copy of an original snapshot.
"""

import dataclasses
import math
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from jax_edm2.config import EDM2Config
from jax_edm2.dtypes import DTYPES
from jax_edm2.files import whole_or_nothing
from jax_edm2.record import Encoder, Loss, Record
from jax_edm2.safetensors_checkpoint import write_at
from jax_edm2.tensors import Hashes, Tensor, hashed, refuse_to_lose, stored_dtype

from .errors import ConverterError
from .formats import numpy_pickle
from .formats.nvlabs import EASY_DICT, MODULE_DICT, RECONSTRUCT
from .formats.pickle_reader import Global
from .formats.pickle_writer import Call, New, Payload, PickleWriter
from .formats.torch_legacy import LOAD_STORAGE, ORDERED_DICT, REBUILD_PARAMETER, REBUILD_TENSOR, header, strides
from .modules import HOOKS, VERSION, Module, network
from .names import jax_path, torch_name
from .snapshot import RGB, VAE, Snapshot

EMPTY_DICT = Call(ORDERED_DICT, ())
EMPTY_SET = Call(Global("builtins", "set"), ([],))
NOTHING = New(EASY_DICT)
SOURCES = Path(__file__).parent.with_name("torch_ref")
# So that what NVlabs' tools write of these objects has the source as well. Others can do without.
PERSISTENT = """

try:
    from torch_utils.persistence import persistent_class
except ImportError:
    pass
else:
    for _name, _class in list(globals().items()):
        if isinstance(_class, type) and _class.__module__ == __name__:
            globals()[_name] = persistent_class(_class)
"""
BUFFER = 2**20


class WriteError(ConverterError):
    """A network that cannot be written in a format of PyTorch's."""


def write_snapshot(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Stream `tensors` into a snapshot, and return the record that a checkpoint of it would have.

    Raises: WriteError for an encoder that NVlabs' code does not have; FileExistsError unless `overwrite`; OSError.
    """
    refuse_to_lose(Path(path))
    _refuse_state(path, record)
    tensors, digest = hashed(tensors)
    content = New(
        EASY_DICT,
        {
            "encoder": _encoder(path, record.encoder),
            "dataset_kwargs": New(EASY_DICT),
            "loss_fn": _loss(record.loss),
            "ema": _Network(tensors, record.config).object(),
        },
    )
    with whole_or_nothing(Path(path), overwrite=overwrite) as temporary:
        with open(temporary, "wb", buffering=BUFFER) as file:
            PickleWriter(file.write, 4).dump(content)
            file.flush()
            os.fsync(file.fileno())
        return finish(dataclasses.replace(record, dtype=stored_dtype(tensors), digest=digest.value))


def _refuse_state(path: Any, record: Record):
    if record.training is not None:
        raise WriteError(f"{path}: only one network can be written as .pkl: choose with --weights net or ema-STD")


class _Network:
    """The network's object: modules as `converter.modules` describes them, with tensors that are streamed."""

    def __init__(self, tensors: Mapping[str, Tensor], config: EDM2Config):
        self._tensors, self._config = tensors, config
        self._source = source_text("network")
        self._keys = 0

    def object(self) -> Any:
        return self._module("", network(self._config), New(EASY_DICT, self._config.to_json()))

    def _module(self, name: str, module: Module, arguments: Any = NOTHING) -> Any:
        below: dict[str, Any] = {}
        absent: dict[str, None] = {}
        for key, child in module.modules.items():
            if child is None:
                absent[key] = None
            else:
                below[key] = self._module(f"{name}.{key}" if name else key, child)
        state: dict[str, Any] = {
            "training": False,
            "_parameters": _ordered({key: self._parameter(f"{name}.{key}") for key in module.parameters}),
            "_buffers": _ordered({key: self._tensor(f"{name}.{key}") for key in module.buffers}),
            "_non_persistent_buffers_set": EMPTY_SET,
            **dict.fromkeys(HOOKS, EMPTY_DICT),
            "_is_full_backward_hook": None,
            "_modules": _ordered(below),
        }
        if module.cls == str(MODULE_DICT):
            return New(MODULE_DICT, state=state)
        attributes = {key: list(v) if isinstance(v, tuple) else v for key, v in module.attributes.items()}
        return _persistent(module.cls, self._source, {**state, **attributes, **absent}, arguments)

    def _parameter(self, name: str) -> Any:
        return Call(REBUILD_PARAMETER, (self._tensor(name), False, EMPTY_DICT))

    def _tensor(self, name: str) -> Any:
        tensor = self._tensors[jax_path(name)]
        numel, key = math.prod(tensor.shape), str(self._keys)
        self._keys += 1
        head = header(tensor.dtype, numel, key)

        def chunks():
            yield head
            yield from tensor.chunks()

        storage = Call(LOAD_STORAGE, (Payload(len(head) + tensor.nbytes, chunks),))
        return Call(REBUILD_TENSOR, (storage, 0, tensor.shape, strides(tensor.shape), False, EMPTY_DICT))


def _ordered(items: dict) -> Any:
    return Call(ORDERED_DICT, (), items)


def _persistent(cls: str, source: str, state: dict[str, Any], arguments: Any = NOTHING) -> Any:
    state = {**state, "_init_args": (), "_init_kwargs": arguments}
    meta = {"type": "class", "version": VERSION, "module_src": source, "class_name": cls, "state": state}
    return Call(RECONSTRUCT, (meta,))


def source_text(module: str) -> str:
    """The source of a module of torch_ref, as snapshots that are written here carry it."""
    return SOURCES.joinpath(f"{module}.py").read_text("utf-8") + PERSISTENT


def _encoder(path: Any, encoder: Encoder | None) -> Any:
    if encoder is None:
        return None
    if encoder.kind == RGB:
        return _persistent(RGB, source_text("encoders"), {})
    if encoder.kind != VAE or encoder.scale is None or encoder.bias is None:
        raise WriteError(f"{path}: no source is known of the encoder {encoder.kind}; --like ORIGINAL.pkl has it")
    state = {"vae_name": encoder.vae, "scale": _array(encoder.scale), "bias": _array(encoder.bias)}
    return _persistent(VAE, source_text("encoders"), {**state, "batch_size": 8, "_vae": None})


def _loss(loss: Loss | None) -> Any:
    if loss is None:
        return None
    return _persistent("EDM2Loss", source_text("training"), vars(loss), New(EASY_DICT, dict(vars(loss))))


def _array(values: tuple[float, ...]) -> Any:
    """A numpy array of float32."""
    return numpy_pickle.pickled("f4", (len(values),), struct.pack(f"<{len(values)}f", *values))


def write_like(
    original: Snapshot,
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """A copy of an open snapshot's file with the values of `tensors`, which have its shapes and dtypes.

    Same values give the same file, byte for byte. Raises: WriteError if it is of another network; as `write_snapshot`.
    """
    refuse_to_lose(Path(path))
    _refuse_state(path, record)
    with (
        whole_or_nothing(Path(path), overwrite=overwrite) as temporary,
        WritingLike(original, temporary, tensors, record) as writing,
    ):
        for name, tensor in tensors.items():
            for chunk in tensor.chunks():
                writing.write(name, chunk)
        return writing.finish(finish)


class WritingLike:
    """A copy of a snapshot in the making: as `jax_edm2.safetensors_checkpoint.Writing`, for its container."""

    def __init__(self, original: Snapshot, path: Path, tensors: Mapping[str, Tensor], record: Record):
        """Raises: WriteError, OSError."""
        if original.config != record.config:
            raise WriteError(f"{original.path}: is of another network than what is to be written like it")
        self._places = {name: original.tensors[torch_name(name)] for name in tensors}
        for name, tensor in tensors.items():
            if (stored := self._places[name].dtype) != tensor.dtype:
                raise WriteError(f"{original.path}: has {torch_name(name)} in {stored}, not {tensor.dtype}")
        self._tensors, self._record = tensors, record
        self.hashes = Hashes(tensors)
        self._done = dict.fromkeys(tensors, 0)  # bytes
        self._whole: dict[str, bytearray] = {}  # of tensors whose axes lie in another order in the file
        if not path.exists():
            copy = path.with_name(f"{path.name}.copy")
            shutil.copyfile(original.path, copy)
            os.replace(copy, path)  # who is killed before leaves nothing that looks like a whole copy
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115

    def write(self, name: str, chunk: "bytes | memoryview"):
        self.hashes.update(name, chunk)
        place, done = self._places[name], self._done[name]
        self._done[name] += len(chunk)
        if place.is_c_ordered:
            write_at(self._file.fileno(), chunk, place.data.offset + done)
            return
        self._whole.setdefault(name, bytearray()).extend(chunk)
        if self._done[name] == place.data.length:
            data = _reordered(self._whole.pop(name), self._tensors[name], place.order)
            write_at(self._file.fileno(), data, place.data.offset)

    def finish(self, complete: Callable[[Record], Record]) -> Record:
        os.fsync(self._file.fileno())
        return complete(dataclasses.replace(self._record, dtype=stored_dtype(self._tensors), digest=self.hashes.digest))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self._file.close()


def _reordered(data: bytearray, tensor: Tensor, order: tuple[int, ...]) -> memoryview:
    """A tensor's bytes with its axes in another order."""
    import numpy as np

    array = np.frombuffer(data, DTYPES[tensor.dtype].numpy).reshape(tensor.shape)
    return np.ascontiguousarray(array.transpose(order)).reshape(-1).view("uint8").data
