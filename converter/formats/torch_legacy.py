"""Tensors as torch saved them before version 1.6: streams of pickles, with the elements behind them.

In a snapshot each storage is a stream of its own, inside the pickle; a file of torch.save is one stream of many.
Sources: torch's `serialization._legacy_load` for the stream of a storage, `_utils._rebuild_tensor_v2` and
`_rebuild_parameter` for what is made of it.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax_edm2.dtypes import DTYPES
from jax_edm2.messages import brief

from .file import ByteRange, File, PickleError
from .pickle_reader import Budget, Global, Interpreter
from .pickle_writer import PersistentId, PickleWriter

STORAGE_TYPES = {
    Global("torch", "HalfStorage"): "float16",
    Global("torch", "BFloat16Storage"): "bfloat16",
    Global("torch", "FloatStorage"): "float32",
    Global("torch", "DoubleStorage"): "float64",
}
COUNTS = {Global("torch", "LongStorage"): "int64"}  # of batches that a norm has seen: no weights
LOCATION = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")  # of what a storage was; never 'meta', which has no values

LOAD_STORAGE = Global("torch.storage", "_load_from_bytes")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
ORDERED_DICT = Global("collections", "OrderedDict")

MAX_DIMENSIONS = 8
CHANNELS_LAST = (0, 2, 3, 1)
TORCH_MAGIC, TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Storage:
    """A torch storage: `numel` little-endian elements in the file."""

    dtype: str  # numpy's name
    numel: int
    data: ByteRange
    crc: int | None = None  # CRC-32 of its bytes, where the file has one


@dataclass(frozen=True)
class TensorRecord:
    """A torch tensor that is the whole of its storage: its data is a range of the file.

    order: the axes of its shape as they lie in the file, the slowest first; (0, 1, 2, ...) is C's order.
    """

    dtype: str  # numpy's name
    shape: tuple[int, ...]
    data: ByteRange
    order: tuple[int, ...]
    crc: int | None = None  # CRC-32 of its bytes, where the file has one

    @property
    def is_c_ordered(self) -> bool:
        return self.order == tuple(range(len(self.shape)))


class _Stream:
    """A stream of torch.save: five pickles, and behind them the elements of each storage after their count."""

    def __init__(self, file: File, where: ByteRange, budget: Budget, window: int, what: str):
        """what: how errors begin, up to the colon."""
        self.file, self.position, self.end = file, where.offset, where.offset + where.length
        self._budget, self._window, self._what = budget, window, what

    def fail(self, what: object):
        raise PickleError(f"{self._what}{what}")

    def unpickle(self, **allowed: Any) -> Any:
        interpreter = Interpreter(
            self.file, self.position, self.end, budget=self._budget, protocols=(2,), window=self._window, **allowed
        )
        try:
            value = interpreter.run()
        except PickleError as error:
            self.fail(error)
        self.position = interpreter.position
        return value

    def begin(self):
        """Past the three pickles that say what follows. Raises: PickleError."""
        if self.unpickle() != TORCH_MAGIC:
            self.fail("does not begin as torch.save's layout does")
        if self.unpickle() != TORCH_PROTOCOL:
            self.fail("has another protocol version than 1001")
        system = self.unpickle()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            self.fail("is not little-endian")

    def described(self, pid: Any, kinds: Mapping[Global, str]) -> tuple[str, str, int]:
        """A storage's dtype, key and number of elements. Raises: PickleError."""
        if not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage":
            self.fail("is not a single storage")
        _, kind, key, location, numel, view = pid
        if not isinstance(kind, Global) or kind not in kinds:
            self.fail("has no known storage type")
        if not isinstance(key, str) or not isinstance(location, str) or not is_count(numel) or view is not None:
            self.fail("has a malformed storage description")
        if not LOCATION.fullmatch(location):
            self.fail(f"was on the device {brief(location)}, which keeps no values or is unknown")
        return kinds[kind], key, numel

    def elements(self, dtype: str, numel: int, last: bool) -> ByteRange:
        """Where the elements of the next storage are, which of the last reach to the end. Raises: PickleError."""
        if self.end - self.position < 8:
            self.fail("breaks off before its elements")
        (count,) = struct.unpack("<q", self.file.read(self.position, 8))
        length = numel * size_of(dtype)
        there = self.end - self.position - 8
        if count != numel or there < length or (last and there != length):
            self.fail(f"announces {numel} and {count} elements of {dtype} and holds {there} bytes")
        data = ByteRange(self.position + 8, length)
        self.position += 8 + length
        return data


def storage(file: File, payload: ByteRange, budget: Budget) -> Storage:
    """The storage of a nested torch.save stream."""
    stream = _Stream(file, payload, budget, 512, f"the tensor data at byte {payload.offset}: ")
    start = file.read(payload.offset, min(4, payload.length))
    if start.startswith(b"PK"):
        stream.fail("is a zip file, as torch.save writes since 1.6; snapshots hold the older layout")
    stream.begin()
    header = stream.unpickle(globals_=frozenset(STORAGE_TYPES), persistent=lambda pid: pid)
    dtype, key, numel = stream.described(header, STORAGE_TYPES)
    if stream.unpickle() != [key]:
        stream.fail("lists other storages than its own")
    return Storage(dtype, numel, stream.elements(dtype, numel, last=True))


def read_state_dict(file: File) -> dict[str, TensorRecord]:
    """A file of torch.save as before 1.6, which holds a state_dict: tensors by name. Raises: PickleError."""
    stream = _Stream(file, ByteRange(0, file.size), Budget(), 64 * 1024, "")
    kinds = {**STORAGE_TYPES, **COUNTS}
    stream.begin()
    found: dict[str, tuple[str, int]] = {}

    def persistent(pid: Any) -> Storage:
        dtype, key, numel = stream.described(pid, kinds)
        if key in found:
            raise PickleError(f"the storage {brief(key)} is used twice")
        found[key] = dtype, numel
        return Storage(dtype, numel, ByteRange(len(found) - 1, 0))  # where it is, is known when all are read

    value = stream.unpickle(
        globals_=frozenset({ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *kinds}),
        calls={ORDERED_DICT: empty_dict, REBUILD_TENSOR: tensor, REBUILD_PARAMETER: parameter},
        builds={dict: metadata},
        persistent=persistent,
    )
    keys = stream.unpickle()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(found):
        stream.fail("lists other storages than its tensors have")
    places = {}
    for i, key in enumerate(keys):
        places[key] = stream.elements(*found[key], last=i + 1 == len(keys))
    by_number = [places[key] for key in found]
    if not isinstance(value, dict) or not all(isinstance(record, TensorRecord) for record in value.values()):
        stream.fail("is a file of torch.save, but holds no state_dict: something in it is no tensor")
    return {name: dataclasses.replace(record, data=by_number[record.data.offset]) for name, record in value.items()}


def size_of(dtype: str) -> int:
    """Bytes of an element."""
    return 8 if dtype == "int64" else DTYPES[dtype].size


def tensor(_file: File, storage, offset, shape, stride, requires_grad, hooks, *more) -> TensorRecord:
    if more:
        raise PickleError("a tensor with metadata (conjugate or negative view) is not supported")
    if not isinstance(storage, Storage) or not is_shape(shape) or not is_shape(stride) or len(stride) != len(shape):
        raise PickleError("a tensor has a malformed storage, shape or stride")
    if hooks != {} or type(requires_grad) is not bool:
        raise PickleError("a tensor has hooks, or a malformed requires_grad")
    if offset != 0 or math.prod(shape) != storage.numel:
        raise PickleError(
            f"a tensor of shape {list(shape)} is not the whole of its storage of {storage.numel} elements"
        )
    for order in (tuple(range(len(shape))), CHANNELS_LAST):
        if len(order) == len(shape) and _is_dense(shape, stride, order):
            return TensorRecord(storage.dtype, shape, storage.data, order, storage.crc)
    raise PickleError(f"a tensor of shape {list(shape)} is not contiguous (stride {list(stride)})")


def _is_dense(shape, stride, order) -> bool:
    """Do elements lie side by side when axes are walked in `order`, the last the fastest?"""
    step = 1
    for axis in reversed(order):
        if shape[axis] != 1 and stride[axis] != step:
            return False
        step *= shape[axis]
    return True


def parameter(_file: File, tensor, requires_grad, hooks) -> TensorRecord:
    if not isinstance(tensor, TensorRecord) or type(requires_grad) is not bool or hooks != {}:
        raise PickleError("a parameter is not a plain tensor, or has hooks")
    return tensor


def header(dtype: str, numel: int, key: str) -> bytes:
    """What stands before the elements in the stream of a storage, as `storage` reads it."""
    kind = next(kind for kind, name in STORAGE_TYPES.items() if name == dtype)
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": TORCH_PROTOCOL, "little_endian": True, "type_sizes": sizes}
    storage = PersistentId(("storage", kind, key, "cpu", numel, None))
    data = bytearray()
    for value in (TORCH_MAGIC, TORCH_PROTOCOL, system, storage, [key]):
        PickleWriter(data.extend, 2).dump(value)
    return bytes(data) + struct.pack("<q", numel)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor in C's order, as torch has them."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(is_count, value))


def empty_dict(_file: File) -> dict:
    return {}


def metadata(target: dict, state: Any):
    """What torch sets as an attribute of a state_dict: the versions of its modules, of no use here."""
    if not isinstance(state, dict) or state.keys() != {"_metadata"}:
        raise PickleError("BUILD does not fit a dictionary")
