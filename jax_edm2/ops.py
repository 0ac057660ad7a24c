"""The magnitude-preserving operations of EDM2 (arXiv 2312.02696), on arrays with their channels last: [N, H, W, C].

Channels last is XLA's only fast layout for convolutions on the CPU, and the one that it moves them to elsewhere; the
network is NCHW outside and transposes its input and output. Every function keeps the dtype of its input, and computes
in `wide` precision: a constant such as 0.596 that is rounded to bfloat16 is wrong by 0.3 %, the same way every time,
which adds up over the blocks.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jax_edm2.shapes import Activations, Floats, Values, Weight


def wide(dtype) -> jnp.dtype:
    """The dtype of norms, weights, embeddings and preconditioning, for activations of `dtype`."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def normalize(x: Values, axis: int | tuple[int, ...] | None = None, eps: float = 1e-4) -> Values:
    """x scaled to unit root mean square over `axis` (default: all but the first). Pixel norm is axis=-1.

    x / (eps + |x| sqrt(norms / elements)); eps is added after the scaling. The gradient at |x| = 0 is finite.
    """
    axis = tuple(range(1, x.ndim)) if axis is None else axis
    square = jnp.sum(jnp.square(x.astype(wide(x.dtype))), axis, keepdims=True)
    norm = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    norm = norm * math.sqrt(norm.size / x.size) + eps
    return x / norm.astype(x.dtype)


def sharded(x: Values) -> bool:
    """Whether x is in parts on a mesh with explicit axes, whose operations want to be told where their results go."""
    return any(axes is not None for axes in jax.typeof(x).sharding.spec)


def whole(w: Values, beside: Any = None) -> Values:
    """w on every device: parameters that are sharded come together where they are used (FSDP).

    beside: what is computed with them. Where that is sharded and they are on no mesh, they join it: JAX would compute,
    but could not say where the gradient goes.
    """
    joins = isinstance(beside, jax.core.Tracer) and sharded(beside) and jax.typeof(w).sharding.mesh.empty
    if not sharded(w) and not joins:
        return w
    mesh = jax.typeof(beside if joins else w).sharding.mesh
    return jax.sharding.reshard(w, NamedSharding(mesh, PartitionSpec(*[None] * w.ndim)))


def effective_weight(w: Weight, gain: Values | None = None) -> Weight:
    """What a layer multiplies with: normalize(w) gain / sqrt(fan_in) (Eq. 47), for w [out, in, ...], in its dtype."""
    scale = 1 / math.sqrt(math.prod(w.shape[1:]))
    return normalize(w) * (scale if gain is None else gain.astype(w.dtype) * scale)


def convolve(x: Activations, w: Floats, padding: int, weights: str = "OIHW") -> Floats:
    """Convolution of x [N, H, W, in] with w [out, in, kh, kw], and `padding` zeros on every side.

    weights: the order of w's axes, OIHW, HWIO or OHWI; or IO, of a 1x1 convolution's.
    """
    if weights == "IO":
        return x @ w
    return lax.conv_general_dilated(
        x,
        w.transpose(2, 3, 1, 0) if weights == "OIHW" else w,
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "OHWI" if weights == "OHWI" else "HWIO", "NHWC"),
    )


def resample(x: Activations, taps: Sequence[float], mode: str) -> Floats:
    """Halve ('down') or double ('up') the resolution of x [N, H, W, C] with a separable filter of even length.

    What PyTorch computes as a convolution of stride 2, transposed for 'up', with zeros around x. Here each axis is
    taken as pairs of pixels, and shifted copies are added: that is elementwise, and fuses with what is around it.
    """
    if mode == "keep":
        return x
    if mode not in ("up", "down"):
        raise ValueError(f"mode must be 'keep', 'up' or 'down', not {mode!r}")
    y = x.astype(wide(x.dtype))
    for axis in (1, 2):
        y = _up(y, taps, axis) if mode == "up" else _down(y, taps, axis)
    return y.astype(x.dtype)


def _filter(taps: Sequence[float]) -> tuple[list[float], int, int]:
    """Taps that sum to 1; the index of the one that meets a pair's first pixel; how many pairs it reaches to a side."""
    first = (len(taps) - 1) // 2
    return (np.asarray(taps, np.float64) / np.sum(taps)).tolist(), first, (first + 1) // 2


def _down(x: Floats, taps: Sequence[float], axis: int) -> Floats:
    """y[i] = the sum over d and r of f[first + 2 d + r] x[2 (i + d) + r], with r 0 and 1."""
    f, first, reach = _filter(taps)
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    terms = []
    for d in range(-reach, reach + 1):
        for r in range(2):
            if 0 <= (k := first + 2 * d + r) < len(f):
                terms.append(f[k] * _shifted(lax.index_in_dim(pairs, r, axis + 1, keepdims=False), d, axis))
    return sum(terms[1:], terms[0])


def _up(x: Floats, taps: Sequence[float], axis: int) -> Floats:
    """y[2 i + r] = the sum over d of 2 f[first + r - 2 d] x[i + d], with r 0 and 1."""
    f, first, reach = _filter(taps)
    terms = []
    for d in range(-reach, reach + 1):
        pair = [2 * f[k] if 0 <= (k := first + r - 2 * d) < len(f) else 0.0 for r in range(2)]
        if any(pair):
            weights = np.asarray(pair, x.dtype).reshape(2, *[1] * (x.ndim - 1 - axis))
            terms.append(jnp.expand_dims(_shifted(x, d, axis), axis + 1) * weights)
    return sum(terms[1:], terms[0]).reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _shifted(x: Floats, by: int, axis: int) -> Floats:
    """y[i] = x[i + by] along an axis, and zeros beyond its ends."""
    if by == 0:
        return x
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (max(-by, 0), max(by, 0))
    return lax.slice_in_dim(jnp.pad(x, padding), max(by, 0), max(by, 0) + size, axis=axis)


def over(x: Any, value: Any) -> Any:
    """A value for all of x [N, ...], or one for each [N], in x's dtype and so that it multiplies x."""
    value = jnp.asarray(value, x.dtype)
    return value.reshape(*value.shape, *(1,) * (x.ndim - value.ndim)) if value.ndim else value


def mp_silu(x: Values) -> Values:
    """Magnitude-preserving SiLU (Eq. 81)."""
    return (jax.nn.silu(x.astype(wide(x.dtype))) / 0.596).astype(x.dtype)


def mp_sum(a: Floats, b: Floats, t: float = 0.5) -> Floats:
    """Magnitude-preserving sum (Eq. 88): t is the share of b."""
    dtype, full = a.dtype, wide(a.dtype)
    a, b = a.astype(full), b.astype(full)
    mixed = a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)
    return (mixed / math.sqrt((1 - t) ** 2 + t**2)).astype(dtype)


def mp_cat(a: Floats, b: Floats, t: float = 0.5) -> Floats:
    """Magnitude-preserving concatenation along the channels (Eq. 103): t is the share of b."""
    dtype, na, nb = a.dtype, a.shape[-1], b.shape[-1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    full = wide(a.dtype)
    a, b = a.astype(full) * (scale / math.sqrt(na) * (1 - t)), b.astype(full) * (scale / math.sqrt(nb) * t)
    return jnp.concatenate([a, b], axis=-1).astype(dtype)
