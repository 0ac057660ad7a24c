"""Tensors as torch pickled them before version 1.6: each storage a stream of its own, inside the pickle or alone.

Sources: torch's `serialization._legacy_load` for the stream of a storage, `_utils._rebuild_tensor_v2` and
`_rebuild_parameter` for what is made of it.
"""

import math
import re
import struct
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
LOCATION = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")  # of what a storage was; never 'meta', which has no values

LOAD_STORAGE = Global("torch.storage", "_load_from_bytes")
REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")

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


def storage(file: File, payload: ByteRange, budget: Budget) -> Storage:
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
    if not isinstance(key, str) or not isinstance(location, str) or not is_count(numel) or view is not None:
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
    if count != numel or data.length != numel * DTYPES[dtype].size:
        fail(f"announces {numel} and {count} elements of {dtype} and holds {data.length} bytes")
    return Storage(dtype, numel, data)


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
