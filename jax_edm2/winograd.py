"""3x3 convolutions by Winograd's algorithm F(2x2, 3x3): four outputs for 16 multiplications instead of 36.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4.1:
Y = A^T [(G g G^T) * (B^T d B)] A for a kernel g and a tile d of 4x4 pixels, with * elementwise; summed over channels, *
is 16 matrix products. Its matrices hold 0, 1 and 1/2 alone, and it rounds about as much as the plain sum: for 128 to
1024 channels in float32, errors of 3.5e-7 to 7e-7 where XLA's convolution has 4e-7.

XLA on the CPU has no such algorithm, and is 1.3 to 2 times faster with this. GPUs' own libraries have it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jax_edm2.ops import sharded

PRODUCTS = 16
FEWEST = 32  # channels: with fewer there is nothing to be gained
AT_ONCE = 2**24  # bytes of transformed pixels: of more, not all stays in the caches


def serves(shape: Sequence[int]) -> bool:
    """Whether convolutions with weights [out, in, kh, kw] are faster this way."""
    return tuple(shape[2:]) == (3, 3) and min(shape[:2]) >= FEWEST


def transform(w: jax.Array) -> jax.Array:
    """G g G^T of kernels w [3, 3, in, out]: [16, in, out], the columns of tiles before their rows."""
    columns = jnp.stack(_of_kernel(*(w[:, i] for i in range(3))))  # [4, 3, in, out]
    u = jnp.stack(_of_kernel(*(columns[:, i] for i in range(3))), axis=1)
    return u.reshape(PRODUCTS, *w.shape[2:])


def _of_kernel(g0: jax.Array, g1: jax.Array, g2: jax.Array) -> list[jax.Array]:
    """G g along an axis."""
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def convolve(x: jax.Array, u: jax.Array) -> jax.Array:
    """Convolution of x [N, H, W, in] with kernels that `transform` has prepared, and zeros around x."""
    n, h, w, channels = x.shape
    size = x.dtype.itemsize * PRODUCTS * -(-h // 2) * -(-w // 2) * channels  # of one image, transformed
    images = max(k for k in range(1, n + 1) if n % k == 0 and (k == 1 or k * size <= AT_ONCE))
    if images == n or sharded(x):  # of images that are on many devices, each has few
        return _convolve(x, u)
    y = lax.map(lambda part: _convolve(part, u), x.reshape(n // images, images, h, w, channels))
    return y.reshape(n, h, w, u.shape[-1])


def _convolve(x: jax.Array, u: jax.Array) -> jax.Array:
    n, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    v = lax.optimization_barrier(jnp.stack(_into(x, 1)))  # in one loop with the next it would take XLA twice as long
    v = jnp.stack(_into(v, 3))  # [4, 4, N, tiles down, tiles across, in]
    m = jnp.einsum("klnyxi,klio->klnyxo", v, u.reshape(4, 4, *u.shape[1:]))
    columns = [jnp.stack(_out_of(list(part)), axis=2) for part in _out_of(list(m))]  # [N, down, 2, across, out]
    y = jnp.stack(columns, axis=4)  # [N, down, 2, across, 2, out]
    y = y.reshape(n, -1, *y.shape[3:])  # merged in separate steps, as meshes with explicit axes demand
    return y.reshape(n, y.shape[1], -1, u.shape[-1])[:, :h, :w]


def _into(x: jax.Array, axis: int) -> list[jax.Array]:
    """B^T d along an axis, for tiles of 4 that begin at every second pixel."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
    count = even.shape[axis] - 1
    (d0, d2), (d1, d3) = ([lax.slice_in_dim(p, i, i + count, axis=axis) for i in range(2)] for p in (even, odd))
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _out_of(m: list[jax.Array]) -> list[jax.Array]:
    """A^T m of four parts."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
