"""The closed list of what an NVlabs snapshot's pickle contains, and the inert record that each becomes.

Sources of the formats: NVlabs/edm2 `torch_utils/persistence.py`; torch's `_utils._rebuild_*` and, for storages, the
layout of torch.save before version 1.6; numpy's `ndarray.__reduce__`.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax_edm2.messages import brief

from . import torch_legacy
from .file import ByteRange, File, PickleError
from .pickle_reader import Budget, Global, Instance, Interpreter
from .torch_legacy import (
    LOAD_STORAGE,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    STORAGE_TYPES,
    Storage,
    TensorRecord,
    is_shape,
)

EASY_DICT = Global("dnnlib.util", "EasyDict")
MODULE_DICT = Global("torch.nn.modules.container", "ModuleDict")
NDARRAY = Global("numpy", "ndarray")
RECONSTRUCT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")

MAX_RANGE = 64  # of a `range` among constructor arguments


@dataclass(eq=False)
class DtypeRecord:
    """A numpy dtype: kind and size ('f4'), byte order ('<', '>', '|', or '=' until BUILD says it)."""

    code: str
    order: str = "="


@dataclass(eq=False)
class ArrayRecord:
    """A numpy array: a range of the file once BUILD has filled it in."""

    dtype: DtypeRecord | None = None
    shape: tuple[int, ...] = ()
    data: ByteRange | None = None


@dataclass(eq=False)
class PersistentObject:
    """An object of a class whose source is embedded in the file. The source is text here, and stays text."""

    class_name: str
    version: Any
    source: str
    state: dict[str, Any]


def read_container(file: File) -> Any:
    """The one pickle that is the whole of `file`, as records. Raises: PickleError."""
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

    interpreter = Interpreter(
        file,
        0,
        file.size,
        globals_=frozenset(_CALLS) | {LOAD_STORAGE, REBUILD_TENSOR, EASY_DICT, MODULE_DICT, NDARRAY, *STORAGE_TYPES},
        calls={**_CALLS, LOAD_STORAGE: storage, REBUILD_TENSOR: tensor},
        newobj=frozenset({EASY_DICT, MODULE_DICT}),
        dicts=frozenset({EASY_DICT}),
        builds={Instance: _build_instance, DtypeRecord: _build_dtype, ArrayRecord: _build_array},
        budget=budget,
    )
    value = interpreter.run()
    if interpreter.position != file.size:
        raise PickleError(f"{file.size - interpreter.position} bytes follow the end of its pickle")
    return value


def _is_bytes(value: Any) -> bool:
    return isinstance(value, ByteRange) and not value.mutable


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


def _build_instance(instance: Instance, state):
    if instance.cls != MODULE_DICT or instance.state is not None or not isinstance(state, dict):
        raise PickleError(f"BUILD does not fit {instance.cls}")
    instance.state = state


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


# numpy


def _dtype(_file: File, code, align, copy) -> DtypeRecord:
    if not isinstance(code, str) or code not in _CODES:
        raise PickleError(f"a numpy array or number has the unsupported dtype {brief(code)}")
    if align is not False or copy is not True:
        raise PickleError("a numpy dtype is made in an unknown way")
    return DtypeRecord(code)


def _build_dtype(dtype: DtypeRecord, state):
    order = state[1] if isinstance(state, tuple) and len(state) == 8 else None
    # No subarray, names or fields; size and alignment as usual, no flags: others make numpy fail, or count references.
    plain = (3, order, None, None, None, -1, -1, 0)
    if order not in ("<", "|") or state != plain or any(type(n) is not int for n in (state[0], *state[5:])):
        raise PickleError("a numpy dtype is not a plain little-endian one")
    dtype.order = order


def _new_array(_file: File, cls, shape, kind) -> ArrayRecord:
    if cls != NDARRAY or shape != (0,) or not _is_bytes(kind):
        raise PickleError("a numpy array is constructed in an unknown way")
    return ArrayRecord()


def _build_array(array: ArrayRecord, state):
    if array.data is not None or not isinstance(state, tuple) or len(state) != 5:
        raise PickleError("a numpy array has a malformed state")
    version, array.shape, array.dtype, fortran, array.data = state
    if version != 1 or type(fortran) is not bool or not _is_bytes(array.data):
        raise PickleError("a numpy array has a malformed state")
    _check_array(array, "F" if fortran else "C")


def _scalar(file: File, dtype, data) -> int | float | bool:
    """A numpy number, which NVlabs' code computes with as with Python's of the same value."""
    if not isinstance(dtype, DtypeRecord) or dtype.order == "=" or not _is_bytes(data):
        raise PickleError("a numpy number has a malformed dtype or data")
    if dtype.code == "f2":
        raise PickleError("a numpy number is a float16, with which NVlabs' code would compute in float16")
    if data.length != int(dtype.code[1:]):
        raise PickleError(f"a numpy number of dtype {dtype.code} does not fit its {data.length} bytes")
    return struct.unpack(f"<{_CODES[dtype.code]}", file.read(data.offset, data.length))[0]


def _array_from_buffer(_file: File, data, dtype, shape, order) -> ArrayRecord:
    array = ArrayRecord(dtype, shape, data)
    _check_array(array, order)
    return array


def _check_array(array: ArrayRecord, order):
    if not isinstance(array.dtype, DtypeRecord) or array.dtype.order == "=" or not isinstance(array.data, ByteRange):
        raise PickleError("a numpy array has a malformed dtype or data")
    if not is_shape(array.shape) or (order != "C" and len(array.shape) > 1):
        raise PickleError("a numpy array has a malformed shape or is not C-ordered")
    if math.prod(array.shape) * int(array.dtype.code[1:]) != array.data.length:
        raise PickleError(f"a numpy array of shape {list(array.shape)} does not fit its {array.data.length} bytes")


# numpy's kinds and sizes, in the letters of `struct`.
_CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}

_CALLS: dict[Global, Callable[..., Any]] = {
    RECONSTRUCT: _persistent_object,
    Global("collections", "OrderedDict"): _empty_dict,
    Global("builtins", "set"): _empty_set,
    Global("builtins", "range"): _range,
    REBUILD_PARAMETER: torch_legacy.parameter,
    Global("numpy", "dtype"): _dtype,
    Global("numpy._core.multiarray", "_reconstruct"): _new_array,
    Global("numpy.core.multiarray", "_reconstruct"): _new_array,
    Global("numpy._core.multiarray", "scalar"): _scalar,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    Global("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
}
