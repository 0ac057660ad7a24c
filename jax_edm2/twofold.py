"""Numbers as unevaluated sums hi + lo of two floats, for the noise embedding.

Fourier features multiply ln(sigma)/4 by frequencies of 6 and more: what float32 rounds off there is the largest error
of a float32 EDM2 network, and at low or high sigma it can pass 3e-6 of the output. Carrying the rounding error along
costs a few operations on [N, channels] and leaves only that of the final cosine.

Written so that fused multiply-adds, which XLA may form anywhere, change nothing: products are of halves of a
significand, and so exact. Float64 needs none of this and takes the plain way.
"""

import math
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
from jax import lax

LN2_HIGH = 0.693145751953125  # ln 2 to 16 bits: its products with exponents are exact
LN2_LOW = math.log(2) - LN2_HIGH


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Twofold:
    """hi + lo, with lo in the order of hi's rounding error."""

    hi: jax.Array
    lo: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> Self:
        return cls(x, jnp.zeros_like(x))

    def __add__(self, other: "Twofold") -> "Twofold":
        total = self.hi + other.hi
        part = total - self.hi
        rest = (self.hi - (total - part)) + (other.hi - part) + (self.lo + other.lo)
        hi = total + rest
        return Twofold(hi, rest - (hi - total))

    def __mul__(self, other: "Twofold") -> "Twofold":
        (a, b), (c, d) = _halves(self.hi), _halves(other.hi)
        return Twofold.of(a * c) + Twofold(a * d + b * c, b * d + (self.lo * other.hi + self.hi * other.lo))


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as a sum of two floats with 12 significant bits each; all of the derivative is in the second."""
    if x.dtype == jnp.float64:
        return x, jnp.zeros_like(x)
    bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    high = lax.stop_gradient(lax.bitcast_convert_type(bits, x.dtype))
    return high, x - high


@jax.custom_jvp
def log(x: jax.Array) -> Twofold:
    """ln(x) to about 40 bits for normal positive x in float32; what `jnp.log` gives for other x and in float64."""
    plain = jnp.log(x)
    if x.dtype == jnp.float64:
        return Twofold.of(plain)
    mantissa, exponent = jnp.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = jnp.where(small, 2 * mantissa, mantissa)  # in [sqrt(1/2), sqrt(2))
    exponent = jnp.where(small, exponent - 1, exponent).astype(x.dtype)
    # ln(m) = 2 atanh(s) with s = (m - 1) / (m + 1), whose first term alone needs twice the precision
    above, below = mantissa - 1, Twofold.of(mantissa) + Twofold.of(jnp.ones_like(mantissa))
    s = above / below.hi
    product = Twofold.of(s) * below
    s_low = (above - product.hi - product.lo) / below.hi
    t = s * s
    tail = s * t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9 + t * (1 / 11 + t / 13)))))
    result = Twofold(exponent * LN2_HIGH, exponent * LN2_LOW) + Twofold(2 * s, 2 * (s_low + tail))
    ordinary = jnp.isfinite(plain)
    return Twofold(jnp.where(ordinary, result.hi, plain), jnp.where(ordinary, result.lo, 0))


@log.defjvp
def _log_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return log(x), Twofold.of(dx / x)


def cos(x: Twofold) -> jax.Array:
    """cos(hi + lo), rounded once."""
    return jnp.cos(x.hi) - jnp.sin(x.hi) * x.lo
