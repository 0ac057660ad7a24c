"""The vision transformer of DINOv2 (arXiv 2304.07193), whose class token FD-DINOv2 is of (arXiv 2306.04675): ViT-L/14.

Tensors have the names of facebookresearch/dinov2, whose `interpolate_offset` is kept: its position embeddings are
resized as if the picture had 0.1 patches more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_edm2.evaluation.resizing import cubic, cubic_antialias, resize
from jax_edm2.shapes import Floats

NORM_EPS = 1e-6
OFFSET = 0.1  # patches
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of red, green and blue


@dataclass(frozen=True)
class DINOv2:
    """The defaults are ViT-L/14, trained with pictures of 518 pixels and asked with such of 224."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    trained: int = 37  # patches along a side
    patches: int = 16  # likewise, of what `features` looks at

    @property
    def size(self) -> int:
        """Pixels along a side."""
        return self.patch * self.patches

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that is needed, by its name in DINOv2's own code, with its shape."""
        d = self.width
        found: dict[str, tuple[int, ...]] = {
            "cls_token": (1, 1, d),
            "pos_embed": (1, 1 + self.trained**2, d),
            "patch_embed.proj.weight": (d, 3, self.patch, self.patch),
            "patch_embed.proj.bias": (d,),
        }
        block = {
            "norm1": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d), "ls1.gamma": (d,),
            "norm2": (d,), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d), "ls2.gamma": (d,),
        }  # fmt: skip
        for i in range(self.depth):
            for name, shape in block.items():
                if name.endswith("gamma"):
                    found[f"blocks.{i}.{name}"] = shape
                else:
                    found[f"blocks.{i}.{name}.weight"], found[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
        return found | {"norm.weight": (d,), "norm.bias": (d,)}

    def prepare(self, given: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What `features` takes: positions resized, patches' embedding as a matrix, layers' scales in their weights,
        and the blocks' tensors stacked [depth, ...]; float32."""
        d, f64 = self.width, np.float64
        first, rest = np.split(np.asarray(given["pos_embed"], f64)[0], [1])
        grid = rest.reshape(self.trained, self.trained, d)
        matrix = cubic(self.trained, self.patches, (self.patches + OFFSET) / self.trained)
        grid = np.einsum("ui,vj,ijd->uvd", matrix, matrix, grid, optimize=True).reshape(-1, d)

        def stacked(name: str, scale: str | None = None) -> np.ndarray:
            return np.stack([one(f"blocks.{i}.{name}", scale and f"blocks.{i}.{scale}") for i in range(self.depth)])

        def one(name: str, scale: str | None) -> np.ndarray:
            value = np.asarray(given[name], np.float32)
            if scale is not None:
                factor = np.asarray(given[scale], f64).reshape(-1, *[1] * (value.ndim - 1))
                value = (value * factor).astype(np.float32)
            return value.T if value.ndim == 2 else value

        blocks = {
            f"{name}.{part}": stacked(f"{name}.{part}", scale)
            for name, scale in (("norm1", None), ("attn.qkv", None), ("attn.proj", "ls1.gamma"),
                                ("norm2", None), ("mlp.fc1", None), ("mlp.fc2", "ls2.gamma"))
            for part in ("weight", "bias")
        }  # fmt: skip
        return {
            "class": np.float32(np.asarray(given["cls_token"], f64)[0] + first),
            "positions": np.float32(grid + np.asarray(given["patch_embed.proj.bias"], f64)),
            "patch": np.float32(np.asarray(given["patch_embed.proj.weight"]).reshape(d, -1).T),
            "blocks": blocks,
            "norm.weight": np.float32(given["norm.weight"]),
            "norm.bias": np.float32(given["norm.bias"]),
        }

    def features(self, params: Mapping[str, Any], pictures: jax.Array) -> Floats:
        """uint8 [N, 3, H, W] of any size to float32 [N, width]."""
        n, _, height, width = pictures.shape
        x = pictures.astype(jnp.float32)
        x = resize(x, cubic_antialias(height, self.size), cubic_antialias(width, self.size)) / 255
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        x = ((x - mean) / std).reshape(n, 3, self.patches, self.patch, self.patches, self.patch)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(n, self.patches**2, -1)
        x = _product(x, params["patch"]) + params["positions"]
        first = jnp.broadcast_to(params["class"], (n, 1, self.width))
        x = jnp.concatenate([first, x], axis=1)
        x, _ = lax.scan(lambda x, block: (self._block(x, block), None), x, params["blocks"])
        return _norm(x[:, 0], params["norm.weight"], params["norm.bias"])

    def _block(self, x: jax.Array, block: Mapping[str, jax.Array]) -> jax.Array:
        def linear(y, name):
            return _product(y, block[f"{name}.weight"]) + block[f"{name}.bias"]

        def norm(y, name):
            return _norm(y, block[f"{name}.weight"], block[f"{name}.bias"])

        n, tokens, d = x.shape
        qkv = linear(norm(x, "norm1"), "attn.qkv").reshape(n, tokens, 3, self.heads, d // self.heads)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        scores = _product(q, k.swapaxes(2, 3)) * np.float32(np.sqrt(self.heads / d))
        y = _product(jax.nn.softmax(scores, axis=-1), v).swapaxes(1, 2).reshape(n, tokens, d)
        x = x + linear(y, "attn.proj")
        return x + linear(jax.nn.gelu(linear(norm(x, "norm2"), "mlp.fc1"), approximate=False), "mlp.fc2")


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.matmul(x, w, precision="highest")


def _norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer norm."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS) * weight + bias
