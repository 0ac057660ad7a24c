"""The closed list of what an NVlabs snapshot's pickle contains, and the inert record that each becomes.

Sources of the formats: NVlabs/edm2 `torch_utils/persistence.py`; torch's `_utils._rebuild_*` and, for storages, the
layout of torch.save before version 1.6; numpy's `ndarray.__reduce__`.
"""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from converter.formats.pickle_reader import Budget, ByteRange, File, Global, Instance, Interpreter, PickleError
from jax_edm2.messages import brief

STORAGE_TYPES = {
    Global("torch", "HalfStorage"): "float16",
    Global("torch", "BFloat16Storage"): "bfloat16",
    Global("torch", "FloatStorage"): "float32",
    Global("torch", "DoubleStorage"): "float64",
}
ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LOCATION = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")  # of what a storage was; never 'meta', which has no values

EASY_DICT = Global("dnnlib.util", "EasyDict")
MODULE_DICT = Global("torch.nn.modules.container", "ModuleDict")
NDARRAY = Global("numpy", "ndarray")

LOAD_STORAGE = Global("torch.storage", "_load_from_bytes")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")

MAX_DIMENSIONS = 8
CHANNELS_LAST = (0, 2, 3, 1)
MAX_RANGE = 64  # of a `range` among constructor arguments
TORCH_MAGIC, TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Storage:
    """A torch storage: `numel` little-endian elements in the file."""

    dtype: str  # numpy's name
    numel: int
    data: ByteRange


@dataclass(frozen=True)
class TensorRecord:
    """A torch tensor that is the whole of its storage: its data is a range of the file.

    order: the axes of its shape as they lie in the file, the slowest first; (0, 1, 2, ...) is C's order.
    """

    dtype: str  # numpy's name
    shape: tuple[int, ...]
    data: ByteRange
    order: tuple[int, ...]

    @property
    def is_c_ordered(self) -> bool:
        return self.order == tuple(range(len(self.shape)))


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
        return _storage(file, payload, budget)

    def tensor(file: File, storage, *arguments) -> TensorRecord:
        if isinstance(storage, Storage):
            once(storage.data.offset, "made a tensor")
        return _tensor(file, storage, *arguments)

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


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_bytes(value: Any) -> bool:
    return isinstance(value, ByteRange) and not value.mutable


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_count, value))


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


# torch


def _storage(file: File, payload: ByteRange, budget: Budget) -> Storage:
    """The storage of a nested torch.save stream: five pickles, a count, and the elements to the payload's end."""
    position, end = payload.offset, payload.offset + payload.length

    def fail(what):
        raise PickleError(f"the tensor data at byte {payload.offset}: {what}")

    def unpickle(**allowed):
        nonlocal position
        interpreter = Interpreter(file, position, end, budget=budget, protocols=(2,), window=512, **allowed)
        try:
            value = interpreter.run()
        except PickleError as error:
            fail(error)
        position = interpreter.position
        return value

    start = file.read(position, min(4, payload.length))
    if start.startswith(b"PK"):
        fail("is a zip file, as torch.save writes since 1.6; snapshots hold the older layout")
    if unpickle() != TORCH_MAGIC:
        fail("does not begin as torch.save's layout does")
    if unpickle() != TORCH_PROTOCOL:
        fail("has another protocol version than 1001")
    system = unpickle()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        fail("is not little-endian")
    header = unpickle(globals_=frozenset(STORAGE_TYPES), persistent=lambda pid: pid)
    if not isinstance(header, tuple) or len(header) != 6 or header[0] != "storage":
        fail("is not a single storage")
    _, kind, key, location, numel, view = header
    if not isinstance(kind, Global) or kind not in STORAGE_TYPES:
        fail("has no known storage type")
    if not isinstance(key, str) or not isinstance(location, str) or not _is_count(numel) or view is not None:
        fail("has a malformed storage description")
    if not LOCATION.fullmatch(location):
        fail(f"was on the device {brief(location)}, which keeps no values or is unknown")
    if unpickle() != [key]:
        fail("lists other storages than its own")
    if end - position < 8:
        fail("breaks off before its elements")
    (count,) = struct.unpack("<q", file.read(position, 8))
    data = ByteRange(position + 8, end - position - 8)
    dtype = STORAGE_TYPES[kind]
    if count != numel or data.length != numel * ITEM_SIZES[dtype]:
        fail(f"announces {numel} and {count} elements of {dtype} and holds {data.length} bytes")
    return Storage(dtype, numel, data)


def _tensor(_file: File, storage, offset, shape, stride, requires_grad, hooks, *more) -> TensorRecord:
    if more:
        raise PickleError("a tensor with metadata (conjugate or negative view) is not supported")
    if not isinstance(storage, Storage) or not _is_shape(shape) or not _is_shape(stride) or len(stride) != len(shape):
        raise PickleError("a tensor has a malformed storage, shape or stride")
    if hooks != {} or type(requires_grad) is not bool:
        raise PickleError("a tensor has hooks, or a malformed requires_grad")
    if offset != 0 or math.prod(shape) != storage.numel:
        raise PickleError(
            f"a tensor of shape {list(shape)} is not the whole of its storage of {storage.numel} elements"
        )
    for order in (tuple(range(len(shape))), CHANNELS_LAST):
        if len(order) == len(shape) and _is_dense(shape, stride, order):
            return TensorRecord(storage.dtype, shape, storage.data, order)
    raise PickleError(f"a tensor of shape {list(shape)} is not contiguous (stride {list(stride)})")


def _is_dense(shape, stride, order) -> bool:
    """Do elements lie side by side when axes are walked in `order`, the last the fastest?"""
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and stride[axis] != step:
            return False
        step *= shape[axis]
    return True


def _parameter(_file: File, tensor, requires_grad, hooks) -> TensorRecord:
    if not isinstance(tensor, TensorRecord) or type(requires_grad) is not bool or hooks != {}:
        raise PickleError("a parameter is not a plain tensor, or has hooks")
    return tensor


# numpy


def _dtype(_file: File, code, align, copy) -> DtypeRecord:
    if not isinstance(code, str) or code not in _CODES:
        raise PickleError(f"a numpy array or number has the unsupported dtype {brief(code)}")
    if align is not False or copy is not True:
        raise PickleError("a numpy dtype is made in an unknown way")
    return DtypeRecord(code)


def _build_dtype(dtype: DtypeRecord, state):
    if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", "|") or state[2:5] != (None,) * 3:
        raise PickleError("a numpy dtype is not a plain little-endian one")
    dtype.order = state[1]


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
    if not _is_shape(array.shape) or (order != "C" and len(array.shape) > 1):
        raise PickleError("a numpy array has a malformed shape or is not C-ordered")
    if math.prod(array.shape) * int(array.dtype.code[1:]) != array.data.length:
        raise PickleError(f"a numpy array of shape {list(array.shape)} does not fit its {array.data.length} bytes")


# numpy's kinds and sizes, in the letters of `struct`.
_CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}

_CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    Global("collections", "OrderedDict"): _empty_dict,
    Global("builtins", "set"): _empty_set,
    Global("builtins", "range"): _range,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("numpy", "dtype"): _dtype,
    Global("numpy._core.multiarray", "_reconstruct"): _new_array,
    Global("numpy.core.multiarray", "_reconstruct"): _new_array,
    Global("numpy._core.multiarray", "scalar"): _scalar,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    Global("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
}
