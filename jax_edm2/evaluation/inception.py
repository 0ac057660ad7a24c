"""InceptionV3 as trained in 2015 (inception-2015-12-05), whose 2,048 features FID is of (arXiv 1512.00567, 1706.08500).

Tensors have the names of torchvision's and pytorch-fid's code, of which this differs as the weights demand: average
pools leave the border out of their means, the last block has a max pool in place of one, and pictures are resized as
TensorFlow did then.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_edm2 import winograd
from jax_edm2.evaluation.resizing import linear_corners, resize
from jax_edm2.shapes import Activations, Floats

FEATURES, SIZE = 2048, 299
NORM_EPS = 1e-3
PARTS = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")  # of a layer; bn.weight may be there, too

Conv = Callable[..., jax.Array]  # (x, name, channels out, size, stride, padding)


@dataclass(frozen=True)
class Layer:
    """A convolution and its norm. shape: of the weight, [out, in, kh, kw]."""

    name: str
    shape: tuple[int, int, int, int]
    stride: int


@functools.cache
def layers() -> tuple[Layer, ...]:
    """All 94, in order."""
    found: list[Layer] = []

    def conv(x, name, out, size=(1, 1), stride=1, padding=(0, 0)):
        found.append(Layer(name, (out, x.shape[-1], *size), stride))
        return _convolve(x, jnp.zeros((*size, x.shape[-1], out)), size, stride, padding)

    jax.eval_shape(lambda x: _network(x, conv), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return tuple(found)


def tensors() -> dict[str, tuple[int, ...]]:
    """Every tensor that is needed, by its name in pytorch-fid, with its shape."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in layers():
        found[f"{layer.name}.{PARTS[0]}"] = layer.shape
        found |= {f"{layer.name}.{part}": layer.shape[:1] for part in PARTS[1:]}
    return found


def prepare(given: Mapping[str, np.ndarray], platform: str) -> dict[str, Any]:
    """What `features` takes: every norm as part of its convolution, in float64, then float32 [kh, kw, in, out].

    Of a 1x1 convolution [in, out]. platform: JAX's name of what will compute. XLA's convolutions on a CPU are slow:
    there 3x3 ones are prepared for Winograd's algorithm, and those that are narrow or strided as one product of
    patches, [kh kw in, out].
    """
    params: dict[str, Any] = {}
    for layer in layers():
        name, (out, channels, *size) = layer.name, layer.shape
        weight, shift, mean, variance = (np.asarray(given[f"{name}.{part}"], np.float64) for part in PARTS)
        scale = np.asarray(given.get(f"{name}.bn.weight", 1.0), np.float64) / np.sqrt(variance + NORM_EPS)
        kernel: Any = np.float32((weight * scale.reshape(-1, 1, 1, 1)).transpose(2, 3, 1, 0))
        on_cpu = platform == "cpu" and channels >= winograd.FEWEST
        if on_cpu and layer.stride == 1 and winograd.serves(layer.shape):
            kernel = winograd.transform(jnp.asarray(kernel))
        elif size == [1, 1] or (on_cpu and (1 in size or layer.stride == 2)):
            kernel = kernel.reshape(-1, out)
        params[f"{name}.weight"], params[f"{name}.bias"] = kernel, np.float32(shift - mean * scale)
    return params


def features(params: Mapping[str, Any], pictures: jax.Array) -> Floats:
    """uint8 [N, 3, H, W] of any size to float32 [N, 2048]."""
    height, width = pictures.shape[2:]
    x = resize(pictures.astype(jnp.float32), linear_corners(height, SIZE), linear_corners(width, SIZE))
    x = (x - 128) / 128

    def conv(x, name, _out, size=(1, 1), stride=1, padding=(0, 0)):
        return jax.nn.relu(_convolve(x, params[f"{name}.weight"], size, stride, padding) + params[f"{name}.bias"])

    return _network(x.transpose(0, 2, 3, 1), conv)


def _convolve(x: Activations, weight: Any, size: tuple[int, int], stride: int, padding: tuple[int, int]) -> jax.Array:
    """weight: as `prepare` has it, of a kernel of that size."""
    if weight.ndim == 3:
        y = winograd.convolve(x, weight)  # with a border of zeros
        return y if padding == (1, 1) else y[:, 1:-1, 1:-1]
    if weight.ndim == 2:
        return jnp.matmul(_patches(x, size, stride, padding), weight, precision="highest")
    return lax.conv_general_dilated(
        x, weight, (stride, stride), [(each, each) for each in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip


def _patches(x: Activations, size: tuple[int, int], stride: int, padding: tuple[int, int]) -> jax.Array:
    """[N, H, W, kh kw C]: the pixels under the kernel, at each place."""
    x = jnp.pad(x, ((0, 0), *((each, each) for each in padding), (0, 0)))
    shifted = [x]
    for axis, length in zip((1, 2), size, strict=True):
        reach = (x.shape[axis] - length) // stride * stride + 1
        shifted = [lax.slice_in_dim(y, i, i + reach, stride, axis) for y in shifted for i in range(length)]
    return jnp.concatenate(shifted, axis=-1) if len(shifted) > 1 else x


def _network(x: Activations, conv: Conv) -> Floats:
    """Normalised pictures [N, 299, 299, 3] to features, with the convolutions that are given, norm and relu in them."""
    x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2)
    x = conv(x, "Conv2d_2a_3x3", 32, (3, 3))
    x = conv(x, "Conv2d_2b_3x3", 64, (3, 3), 1, (1, 1))
    x = conv(_max_pool(x, 2), "Conv2d_3b_1x1", 80)
    x = _max_pool(conv(x, "Conv2d_4a_3x3", 192, (3, 3)), 2)
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_a(x, name, pooled, conv)
    x = _block_b(x, "Mixed_6a", conv)
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _block_c(x, name, inner, conv)
    x = _block_d(x, "Mixed_7a", conv)
    x = _block_e(x, "Mixed_7b", _average_pool, conv)
    x = _block_e(x, "Mixed_7c", _max_pool, conv)
    return jnp.mean(x, axis=(1, 2))


def _block_a(x, name, pooled, conv):
    one = conv(x, f"{name}.branch1x1", 64)
    five = conv(conv(x, f"{name}.branch5x5_1", 48), f"{name}.branch5x5_2", 64, (5, 5), 1, (2, 2))
    three = conv(x, f"{name}.branch3x3dbl_1", 64)
    three = conv(three, f"{name}.branch3x3dbl_2", 96, (3, 3), 1, (1, 1))
    three = conv(three, f"{name}.branch3x3dbl_3", 96, (3, 3), 1, (1, 1))
    pool = conv(_average_pool(x), f"{name}.branch_pool", pooled)
    return jnp.concatenate([one, five, three, pool], axis=-1)


def _block_b(x, name, conv):
    three = conv(x, f"{name}.branch3x3", 384, (3, 3), 2)
    double = conv(x, f"{name}.branch3x3dbl_1", 64)
    double = conv(double, f"{name}.branch3x3dbl_2", 96, (3, 3), 1, (1, 1))
    double = conv(double, f"{name}.branch3x3dbl_3", 96, (3, 3), 2)
    return jnp.concatenate([three, double, _max_pool(x, 2)], axis=-1)


def _block_c(x, name, inner, conv):
    across, down = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    one = conv(x, f"{name}.branch1x1", 192)
    seven = conv(x, f"{name}.branch7x7_1", inner)
    seven = conv(seven, f"{name}.branch7x7_2", inner, *across)
    seven = conv(seven, f"{name}.branch7x7_3", 192, *down)
    double = conv(x, f"{name}.branch7x7dbl_1", inner)
    for i, (out, direction) in enumerate(((inner, down), (inner, across), (inner, down), (192, across)), 2):
        double = conv(double, f"{name}.branch7x7dbl_{i}", out, *direction)
    pool = conv(_average_pool(x), f"{name}.branch_pool", 192)
    return jnp.concatenate([one, seven, double, pool], axis=-1)


def _block_d(x, name, conv):
    three = conv(conv(x, f"{name}.branch3x3_1", 192), f"{name}.branch3x3_2", 320, (3, 3), 2)
    seven = conv(x, f"{name}.branch7x7x3_1", 192)
    seven = conv(seven, f"{name}.branch7x7x3_2", 192, (1, 7), 1, (0, 3))
    seven = conv(seven, f"{name}.branch7x7x3_3", 192, (7, 1), 1, (3, 0))
    seven = conv(seven, f"{name}.branch7x7x3_4", 192, (3, 3), 2)
    return jnp.concatenate([three, seven, _max_pool(x, 2)], axis=-1)


def _block_e(x, name, pool, conv):
    def both(y, branch):
        across = conv(y, f"{name}.{branch}a", 384, (1, 3), 1, (0, 1))
        return [across, conv(y, f"{name}.{branch}b", 384, (3, 1), 1, (1, 0))]

    one = conv(x, f"{name}.branch1x1", 320)
    three = both(conv(x, f"{name}.branch3x3_1", 384), "branch3x3_2")
    double = conv(conv(x, f"{name}.branch3x3dbl_1", 448), f"{name}.branch3x3dbl_2", 384, (3, 3), 1, (1, 1))
    double = both(double, "branch3x3dbl_3")
    pooled = conv(pool(x), f"{name}.branch_pool", 192)
    return jnp.concatenate([one, *three, *double, pooled], axis=-1)


def _max_pool(x: Activations, stride: int = 1) -> jax.Array:
    """Over 3x3 pixels: with a stride of 1 around every pixel, else wherever all nine are there. Of x >= 0."""
    return _pool(_bordered(x) if stride == 1 else x, jnp.maximum, stride)


def _average_pool(x: Activations) -> jax.Array:
    """Over the 3x3 pixels around each, of those that are there."""
    rows, columns = (np.array([2, *[3] * (size - 2), 2], np.float32) for size in x.shape[1:3])
    return _pool(_bordered(x), jnp.add, 1) / np.outer(rows, columns)[:, :, None]


def _bordered(x: Activations) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _pool(x: Activations, operation: Callable, stride: int) -> jax.Array:
    """Of 3x3 pixels; of slices, which XLA on a CPU is five times faster with than with a window."""
    for axis in (1, 2):
        length = (x.shape[axis] - 3) // stride * stride + 1
        first, *rest = (lax.slice_in_dim(x, i, i + length, stride, axis) for i in range(3))
        x = functools.reduce(operation, rest, first)
    return x
