"""The dtypes that weights may be stored in, and what is NaN or infinite in them. Imports numpy when arrays come."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Dtype:
    """A floating-point format."""

    name: str  # numpy's
    code: str  # safetensors'
    size: int  # bytes of a value
    exponent: int  # the bits of its exponent, which NaN and the infinities alone have all set

    @property
    def numpy(self) -> "np.dtype":
        import numpy as np

        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.name)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("float16", "F16", 2, 0x7C00),
        Dtype("float32", "F32", 4, 0x7F80_0000),
        Dtype("bfloat16", "BF16", 2, 0x7F80),
        Dtype("float64", "F64", 8, 0x7FF0_0000_0000_0000),
    )
}


def not_finite(array: "np.ndarray") -> int:
    """How many values are NaN or infinite, in an array of one of DTYPES."""
    return not_finite_bits(array.reshape(-1).view(f"u{array.itemsize}"), DTYPES[str(array.dtype)])


def not_finite_bits(bits: "np.ndarray", dtype: Dtype) -> int:
    """Likewise, of values of `dtype` given as unsigned integers [N]: those whose exponent has all of its bits set."""
    exponent = dtype.exponent
    # The largest of all values, and of those without a sign: no copy is made of what is sound.
    largest = exponent | 1 << 8 * dtype.size - 1
    if not bits.size or (bits.max() < largest and bits.view(f"i{dtype.size}").max() < exponent):
        return 0
    return int(((bits & bits.dtype.type(exponent)) == exponent).sum())
