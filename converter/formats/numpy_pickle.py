"""numpy's arrays and numbers in pickles, as inert records. Source of the format: numpy's `ndarray.__reduce__`."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax_edm2.messages import brief

from .file import ByteRange, File, PickleError
from .pickle_reader import Global
from .pickle_writer import Call
from .torch_legacy import is_shape

NDARRAY = Global("numpy", "ndarray")


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


def _is_bytes(value: Any) -> bool:
    return isinstance(value, ByteRange) and not value.mutable


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
    if not isinstance(dtype, DtypeRecord) or dtype.order == "=" or not (isinstance(data, bytes) or _is_bytes(data)):
        raise PickleError("a numpy number has a malformed dtype or data")
    size = len(data) if isinstance(data, bytes) else data.length
    if dtype.code == "f2":
        raise PickleError("a numpy number is a float16, with which NVlabs' code would compute in float16")
    if size != int(dtype.code[1:]):
        raise PickleError(f"a numpy number of dtype {dtype.code} does not fit its {size} bytes")
    data = data if isinstance(data, bytes) else file.read(data.offset, size)
    return struct.unpack(f"<{_CODES[dtype.code]}", data)[0]


def _encoded(_file: File, text, encoding) -> bytes:
    """A few bytes, as pickles of protocol 2 have them."""
    if not isinstance(text, str) or encoding != "latin1" or len(text) > 8 or not all(ord(c) < 256 for c in text):
        raise PickleError("bytes are written in an unknown way")
    return text.encode("latin1")


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


def pickled(code: str, shape: tuple[int, ...], data: bytes) -> Call:
    """A little-endian, C-ordered array as it is written, and as numpy 1 and 2 read it. code: f4, f8, ..."""
    dtype = Call(Global("numpy", "dtype"), (code, False, True), state=(3, "<", None, None, None, -1, -1, 0))
    reconstruct = Global("numpy.core.multiarray", "_reconstruct")
    return Call(reconstruct, (NDARRAY, (0,), b"b"), state=(1, shape, dtype, False, data))


# numpy's kinds and sizes, in the letters of `struct`.
_CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}

CALLS: dict[Global, Callable[..., Any]] = {
    Global("numpy", "dtype"): _dtype,
    Global("numpy._core.multiarray", "_reconstruct"): _new_array,
    Global("numpy.core.multiarray", "_reconstruct"): _new_array,
    Global("numpy._core.multiarray", "scalar"): _scalar,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.numeric", "_frombuffer"): _array_from_buffer,
    Global("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
}
BUILDS: dict[type, Callable] = {DtypeRecord: _build_dtype, ArrayRecord: _build_array}
# Numbers in pickles of protocol 2.
NUMBERS: dict[Global, Callable[..., Any]] = {
    **{called: CALLS[called] for called in CALLS if called.name in ("dtype", "scalar")},
    Global("_codecs", "encode"): _encoded,
}
