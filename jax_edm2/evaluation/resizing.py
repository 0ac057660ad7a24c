"""Resizing pictures as the detectors of FID and FD-DINOv2 do it: along each axis a matrix, made in float64.

Three ways are needed, which differ in where a pixel lies, in the kernel, and in what is beyond the border; PyTorch has
the two bicubic ones with different kernels (aten/src/ATen/native/UpSample.h).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jax_edm2.shapes import Floats

Kernel = Callable[[np.ndarray], np.ndarray]


def linear_corners(size: int, out: int) -> np.ndarray:
    """[out, size]: TensorFlow's bilinear resize of 2015: output i lies at pixel i size / out, not at its centre."""
    return _clamped(np.arange(out) * (size / out), size, lambda t: np.maximum(1 - t, 0))


def cubic(size: int, out: int, ratio: float | None = None) -> np.ndarray:
    """[out, size]: torch's bicubic without antialiasing (a = -0.75), border pixels repeated.

    ratio: output pixels per input pixel, where it is not out / size: torch's `scale_factor`.
    """
    step = 1 / ratio if ratio is not None else size / out
    return _clamped((np.arange(out) + 0.5) * step - 0.5, size, _keys(-0.75))


def cubic_antialias(size: int, out: int) -> np.ndarray:
    """[out, size]: torch's bicubic with antialiasing (a = -0.5): to shrink, the kernel is as wide as an output pixel;
    what is beyond the border has no weight, and the rest adds up to 1."""
    step = size / out
    centres = (np.arange(out) + 0.5) * step - 0.5
    weights = _keys(-0.5)(np.abs(np.arange(size) - centres[:, None]) / max(step, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resize(x: Floats, rows: np.ndarray, columns: np.ndarray) -> Floats:
    """x [N, C, H, W] by the matrices rows [h, H] and columns [w, W], to [N, C, h, w]."""
    y = jnp.einsum("nchw,vw->nchv", x, jnp.asarray(columns, x.dtype), precision="highest")
    return jnp.einsum("nchv,uh->ncuv", y, jnp.asarray(rows, x.dtype), precision="highest")


def _clamped(centres: np.ndarray, size: int, kernel: Kernel) -> np.ndarray:
    """Weights of pixels around each centre; those beyond the border are its pixels'."""
    reach = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    weights = kernel(np.abs(reach - centres[:, None]))
    matrix = np.zeros((len(centres), size))
    np.add.at(matrix, (np.arange(len(centres))[:, None], np.clip(reach, 0, size - 1)), weights)
    return matrix


def _keys(a: float) -> Kernel:
    """R. Keys' cubic convolution (1981), of distances t >= 0."""

    def kernel(t: np.ndarray) -> np.ndarray:
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0.0))

    return kernel
