"""What a denoiser is given, held to what it takes before anything is computed: every refusal is a ValueError."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.config import EDM2Config
from jax_edm2.shapes import Labels


def check_images(config: EDM2Config, x: Any):
    """Images are [N, C, H, W], with the network's channels, and can be halved as often as it halves them."""
    shape, channels = list(jnp.shape(x)), config.img_channels
    wanted = f"images must be [N, {channels}, H, W]"
    if len(shape) == 3:
        raise ValueError(f"{wanted}, not {shape}: a single one is x[None]")
    if len(shape) != 4:
        raise ValueError(f"{wanted}, not {shape}")
    if shape[1] != channels and shape[3] == channels:
        raise ValueError(f"{wanted}, not {shape}: channels that come last are moved by x.transpose(0, 3, 1, 2)")
    if shape[1] != channels:
        raise ValueError(f"{wanted}, not {shape}: the network has {channels} channels")
    if any(size % config.halvings or not size for size in shape[2:]):
        raise ValueError(f"{wanted}, with H and W multiples of {config.halvings}, not {shape}")


def check_sigma(sigma: Any, images: int):
    """Noise levels are one for all images or one for each, and positive, as far as they are known (not traced)."""
    size, shape = int(np.prod(jnp.shape(sigma))), list(jnp.shape(sigma))
    if size not in (1, images) or (shape and shape[0] != size):
        raise ValueError(f"sigma must be one noise level, or [{images}], one for each image, not {shape}")
    if isinstance(sigma, jax.core.Tracer) or not getattr(sigma, "is_fully_addressable", True):
        return
    levels = np.asarray(sigma, np.float64).reshape(-1)
    if not (levels > 0).all():
        raise ValueError(f"sigma must be a noise level > 0, not {levels[~(levels > 0)][0]:g}: ln(sigma) is an input")


def one_hot_labels(config: EDM2Config, class_labels: Labels | None, dtype: Any, images: int = 1) -> Labels | None:
    """Labels [N or 1, label_dim] as the U-Net wants them: zeros [1, label_dim] for None; None if label_dim is 0.

    Class numbers are refused: they would be taken for one label where N = label_dim.
    """
    if config.label_dim == 0:
        return None
    if class_labels is None:
        return jnp.zeros((1, config.label_dim), dtype)
    class_labels = jnp.asarray(class_labels)
    numbers = class_labels.ndim < 2 and jnp.issubdtype(class_labels.dtype, jnp.integer)
    rows = class_labels.size // config.label_dim
    if numbers or class_labels.shape[-1:] != (config.label_dim,) or rows not in (1, images):
        found = f"{class_labels.dtype} {list(class_labels.shape)}"
        raise ValueError(
            f"class_labels must be one-hot [{images}, {config.label_dim}], not {found}; see jax.nn.one_hot"
        )
    return class_labels.astype(dtype).reshape(-1, config.label_dim)


def check_trainable(params: Any):
    """Parameters that are trained are at least bfloat16: in float16, Adam's epsilon is 0 and 0 / 0 is NaN."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.result_type(leaf) == jnp.float16:
            raise ValueError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')} is float16, in which training becomes NaN: "
                "load(path, dtype=jnp.float32); compute_dtype= sets the precision of the activations"
            )
