"""The closed list of what an NVlabs snapshot's pickle contains, and the inert record that each becomes.

Sources of the formats: NVlabs/edm2 `torch_utils/persistence.py`; torch's `_utils._rebuild_*` and, for storages, the
layout of torch.save before version 1.6; numpy's `ndarray.__reduce__`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax_edm2.messages import brief

from . import numpy_pickle, torch_legacy
from .file import ByteRange, File, PickleError
from .pickle_reader import Budget, Global, Instance, Interpreter, fill_instance
from .torch_legacy import (
    LOAD_STORAGE,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    STORAGE_TYPES,
    Storage,
    TensorRecord,
)

EASY_DICT = Global("dnnlib.util", "EasyDict")
MODULE_DICT = Global("torch.nn.modules.container", "ModuleDict")
RECONSTRUCT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")

MAX_RANGE = 64  # of a `range` among constructor arguments


@dataclass(eq=False)
class PersistentObject:
    """An object of a class whose source is embedded in the file. The source is text here, and stays text."""

    class_name: str
    version: Any
    source: str
    state: dict[str, Any]


def read_container(file: File, classes: Callable[[str, str], bool] = lambda module, name: False) -> Any:
    """The one pickle that is the whole of `file`, as records.

    classes: what modules may be there beside NVlabs' own and ModuleDict. Raises: PickleError.
    """
    if file.read(0, min(file.size, 2)) == b"\x80\x02":
        raise PickleError(
            "is written in pickle protocol 2, which keeps numbers as text: load it with NVlabs' code and "
            "pickle.dump it again with protocol=4"
        )
    budget = Budget()
    used: set[int] = set()  # what stands in the file once and torch pickles once: payloads and storages, by offset

    def once(offset: int, what: str):
        if offset in used:
            raise PickleError(f"the tensor data at byte {offset} is {what} twice")
        used.add(offset)

    def storage(file: File, payload) -> Storage:
        if not isinstance(payload, ByteRange):
            raise PickleError("a tensor's data is not a byte string")
        once(payload.offset, "loaded")
        return torch_legacy.storage(file, payload, budget)

    def tensor(file: File, storage, *arguments) -> TensorRecord:
        if isinstance(storage, Storage):
            once(storage.data.offset, "made a tensor")
        return torch_legacy.tensor(file, storage, *arguments)

    kinds = {EASY_DICT, MODULE_DICT, numpy_pickle.NDARRAY, *STORAGE_TYPES}
    interpreter = Interpreter(
        file,
        0,
        file.size,
        globals_=frozenset(_CALLS) | {LOAD_STORAGE, REBUILD_TENSOR} | kinds,
        calls={**_CALLS, LOAD_STORAGE: storage, REBUILD_TENSOR: tensor},
        newobj=frozenset({EASY_DICT, MODULE_DICT}),
        dicts=frozenset({EASY_DICT}),
        classes=classes,
        builds={Instance: fill_instance, **numpy_pickle.BUILDS},
        budget=budget,
    )
    value = interpreter.run()
    if interpreter.position != file.size:
        raise PickleError(f"{file.size - interpreter.position} bytes follow the end of its pickle")
    return value


# NVlabs' persistence


def _persistent_object(_file: File, meta) -> PersistentObject:
    if not isinstance(meta, dict):
        raise PickleError("a persistent object without its dictionary")
    kinds = {"type": str, "version": int, "module_src": str, "class_name": str, "state": dict}
    wrong = [key for key in kinds if not isinstance(meta.get(key), kinds[key])] + [
        key for key in meta if key not in kinds
    ]
    if wrong or meta["type"] != "class":
        raise PickleError(f"a persistent object has a wrong entry {brief((wrong or ['type'])[0])}")
    return PersistentObject(meta["class_name"], meta["version"], meta["module_src"], meta["state"])


def _empty_dict(_file: File) -> dict:
    return {}


def _empty_set(_file: File, items) -> frozenset:
    if items != []:
        raise PickleError("a set that is not empty, as those of a network's modules are")
    return frozenset()


def _range(_file: File, start, stop, step) -> tuple[int, ...]:
    """`range` among constructor arguments, as the numbers that it stands for."""
    if not all(type(value) is int and abs(value) < 2**31 for value in (start, stop, step)) or not step:
        raise PickleError("a range of something other than integers")
    if len(numbers := range(start, stop, step)) > MAX_RANGE:
        raise PickleError(f"a range of {len(numbers):,} numbers")
    return tuple(numbers)


_CALLS: dict[Global, Callable[..., Any]] = {
    RECONSTRUCT: _persistent_object,
    Global("collections", "OrderedDict"): _empty_dict,
    Global("builtins", "set"): _empty_set,
    Global("builtins", "range"): _range,
    REBUILD_PARAMETER: torch_legacy.parameter,
    **numpy_pickle.CALLS,
}
