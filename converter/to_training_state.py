"""Training states written as NVlabs' training-state-KIMG.pt, from which its training resumes. Needs no torch.

`converter.training_state` has the layout of what is in the file, `converter.formats.torch_zip` that of the file.
"""

import dataclasses
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax_edm2.config import EDM2Config
from jax_edm2.files import whole_or_nothing
from jax_edm2.record import KEY, Record
from jax_edm2.state_layout import NET, average_part
from jax_edm2.tensors import Tensor, hashed, refuse_to_lose, stored_dtype

from .formats.pickle_writer import Call, New, PersistentId, PickleWriter
from .formats.torch_legacy import ORDERED_DICT, REBUILD_TENSOR, STORAGE_TYPES, strides
from .formats.torch_zip import EASY_DICT
from .modules import Module, network
from .names import jax_path
from .to_snapshot import WriteError
from .training_state import ADAM, KEYS

ALIGNMENT = 64  # of a storage's first byte in the file, as torch has it
FIRST = (1980, 1, 1, 0, 0, 0)  # the archive's time: the same state gives the same file


def write_training_state(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Stream a training state's `tensors`, by path in the JAX tree, into a file of torch.save's.

    Raises: WriteError for what is no training state, or not in float32; FileExistsError unless `overwrite`; OSError.
    """
    refuse_to_lose(Path(path))
    if record.training is None:
        raise WriteError(
            f"{path}: only a training state can be written as .pt, not a network; --format pkl is for that"
        )
    if odd := [name for name, tensor in tensors.items() if tensor.dtype != "float32"]:
        raise WriteError(f"{path}: training states are in float32, and {odd[0]} is {tensors[odd[0]].dtype}")
    tensors, digest = hashed(tensors)
    state = _State(tensors, record)
    pickle = bytearray()
    PickleWriter(pickle.extend, 2).dump(state.content())
    with whole_or_nothing(Path(path), overwrite=overwrite) as temporary:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                folder = Path(path).stem
                small = {"data.pkl": bytes(pickle), "byteorder": b"little", "version": b"3\n"}
                for name, data in small.items():
                    _add(archive, f"{folder}/{name}", [data])
                for number, tensor in enumerate(state.storages):
                    _add(archive, f"{folder}/data/{number}", tensor.chunks())
            os.fsync(file.fileno())
        return finish(dataclasses.replace(record, dtype=stored_dtype(tensors), digest=digest.value))


def _add(archive: zipfile.ZipFile, name: str, chunks: Any):
    info = zipfile.ZipInfo(name, FIRST)
    start = archive.fp.tell() + 30 + len(name) + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2H", 0x4246, padding) + bytes(padding)
    with archive.open(info, "w") as member:
        for chunk in chunks:
            member.write(chunk)


class _State:
    """storages: the tensors, in the order of their numbers in the pickle."""

    def __init__(self, tensors: Mapping[str, Tensor], record: Record):
        self._tensors, self._record = tensors, record
        self.storages: list[Tensor] = []

    def content(self) -> dict[str, Any]:
        record, training, loss = self._record, self._record.training, self._record.loss
        assert training is not None
        names = state_names(record.config)
        parameters = [name for name in names if jax_path(name).startswith("params/")]
        group = {
            "lr": training.learning_rate, "betas": training.betas, "eps": training.eps, **ADAM, "foreach": None,
            "fused": None, "params": list(range(len(parameters))),
        }  # fmt: skip
        step = Tensor("float32", (), lambda: [struct.pack("<f", training.steps)])
        state = New(EASY_DICT, {"cur_nimg": training.images, "total_elapsed_time": training.seconds})
        noise = {} if loss is None else {name: float(value) for name, value in vars(loss).items()}
        return {
            "state": state,
            "net": self._dict(NET, names),
            "loss_fn": {**noise, "_init_args": (), "_init_kwargs": New(EASY_DICT, dict(noise))},
            "optimizer": {
                "state": {
                    number: {"step": self._tensor(step)}
                    | {key: self._tensor(self._at(part, name)) for part, key in KEYS.items()}
                    for number, name in enumerate(parameters)
                },
                "param_groups": [group],
            },
            "ema": {
                "stds": list(training.stds),
                "emas": [self._dict(average_part(std), names) for std in training.stds],
            },
            KEY: record.to_json(),  # which NVlabs' code passes over
        }

    def _at(self, part: str, name: str) -> Tensor:
        return self._tensors[f"{part}/{jax_path(name)}"]

    def _dict(self, part: str, names: list[str]) -> Any:
        return Call(ORDERED_DICT, (), {name: self._tensor(self._at(part, name)) for name in names})

    def _tensor(self, tensor: Tensor) -> Any:
        kind = next(kind for kind, dtype in STORAGE_TYPES.items() if dtype == tensor.dtype)
        numel = math.prod(tensor.shape)
        storage = PersistentId(("storage", kind, str(len(self.storages)), "cpu", numel))
        self.storages.append(tensor)
        arguments = (storage, 0, tensor.shape, strides(tensor.shape), False, Call(ORDERED_DICT, ()))
        return Call(REBUILD_TENSOR, arguments)


def state_names(config: EDM2Config) -> list[str]:
    """A network's tensors in the order of its state_dict: a module's own, and then those of the modules in it."""

    def walk(prefix: str, module: Module):
        for name in (*module.parameters, *module.buffers):
            yield prefix + name
        for name, below in module.modules.items():
            if below is not None:
                yield from walk(f"{prefix}{name}.", below)

    return list(walk("", network(config)))
