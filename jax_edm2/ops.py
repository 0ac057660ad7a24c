"""The magnitude-preserving operations of EDM2 (arXiv 2312.02696), on NCHW arrays.

Every function keeps the dtype of its input, and computes in `wide` precision: a constant such as 0.596 that is rounded
to bfloat16 is wrong by 0.3 %, the same way every time, which adds up over the blocks.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def wide(dtype) -> jnp.dtype:
    """The dtype of norms, weights, embeddings and preconditioning, for activations of `dtype`."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def normalize(x: jax.Array, axis: int | tuple[int, ...] | None = None, eps: float = 1e-4) -> jax.Array:
    """x scaled to unit root mean square over `axis` (default: all but the first). Pixel norm is axis=1.

    x / (eps + |x| sqrt(norms / elements)); eps is added after the scaling. The gradient at |x| = 0 is finite.
    """
    axis = tuple(range(1, x.ndim)) if axis is None else axis
    square = jnp.sum(jnp.square(x.astype(wide(x.dtype))), axis, keepdims=True)
    norm = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    norm = norm * math.sqrt(norm.size / x.size) + eps
    return x / norm.astype(x.dtype)


def convolve(
    x: jax.Array,
    w: jax.Array,
    padding: int,
    weights: str = "OIHW",
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolution of x [N, C, H, W] with w [out, in / groups, kh, kw]; `padding` zeros on every side.

    weights: the order of w's axes, OIHW or HWIO. dilation: x is spread with dilation - 1 zeros between its pixels
    first. Computed channels last, which is XLA's only fast layout on the CPU within loops, and the one that it moves
    every convolution to elsewhere.
    """
    y = lax.conv_general_dilated(
        x.transpose(0, 2, 3, 1),
        w if weights == "HWIO" else w.transpose(2, 3, 1, 0),
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y.transpose(0, 3, 1, 2)


def resample(x: jax.Array, taps: Sequence[float], mode: str) -> jax.Array:
    """Halve ('down') or double ('up') the resolution of x [N, C, H, W] with a separable filter of even length."""
    if mode == "keep":
        return x
    f = np.asarray(taps, np.float64) / np.sum(taps)
    kernel = np.outer(f, f)
    channels, padding = x.shape[1], (len(f) - 1) // 2
    if mode == "down":
        stride, dilation = 2, 1
    elif mode == "up":  # a transposed convolution: zeros between the pixels, the kernel mirrored
        stride, dilation = 1, 2
        kernel, padding = kernel[::-1, ::-1] * 4, len(f) - 1 - padding
    else:
        raise ValueError(f"mode must be 'keep', 'up' or 'down', not {mode!r}")
    weight = jnp.broadcast_to(jnp.asarray(kernel, x.dtype), (channels, 1, *kernel.shape))
    return convolve(x, weight, padding, stride=stride, dilation=dilation, groups=channels)


def mp_silu(x: jax.Array) -> jax.Array:
    """Magnitude-preserving SiLU (Eq. 81)."""
    return (jax.nn.silu(x.astype(wide(x.dtype))) / 0.596).astype(x.dtype)


def mp_sum(a: jax.Array, b: jax.Array, t: float = 0.5) -> jax.Array:
    """Magnitude-preserving sum (Eq. 88): t is the share of b."""
    dtype, full = a.dtype, wide(a.dtype)
    a, b = a.astype(full), b.astype(full)
    mixed = a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)
    return (mixed / math.sqrt((1 - t) ** 2 + t**2)).astype(dtype)


def mp_cat(a: jax.Array, b: jax.Array, t: float = 0.5) -> jax.Array:
    """Magnitude-preserving concatenation along the channels (Eq. 103): t is the share of b."""
    dtype, na, nb = a.dtype, a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    full = wide(a.dtype)
    a, b = a.astype(full) * (scale / math.sqrt(na) * (1 - t)), b.astype(full) * (scale / math.sqrt(nb) * t)
    return jnp.concatenate([a, b], axis=1).astype(dtype)
