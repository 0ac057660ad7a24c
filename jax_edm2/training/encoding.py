"""From a dataset's images to what a network is trained on, as NVlabs' encoders do it."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.record import Encoder
from jax_edm2.shapes import Images


def encode(encoder: Encoder | None, images: jax.Array, key: jax.Array) -> Images:
    """Images of a dataset as float32 [N, C, H, W] for `train_step`.

    encoder: of a record, or `Encoder.of_latents()`; None is for pixels, uint8 from which x / 127.5 - 1 is made. Of
    latents, float32 [N, 2 C, h, w] of means and standard deviations, every use is another draw, by `key`.
    Raises: ValueError for images that the encoder does not take.
    """
    if encoder is None or encoder.scale is None or encoder.bias is None:
        if images.dtype != jnp.uint8:
            raise ValueError(f"pixels are uint8, and these are {images.dtype}: latents take their encoder")
        return images.astype(jnp.float32) / 127.5 - 1
    channels = len(encoder.scale)
    if images.dtype != jnp.float32 or images.shape[1] != 2 * channels:
        raise ValueError(
            f"latents are float32 of {2 * channels} channels, means and standard deviations, and these are "
            f"{images.dtype} of {images.shape[1]}: dataset_tool.py encode makes them"
        )
    mean, std = jnp.split(images, 2, axis=1)
    raw = mean + jax.random.normal(key, mean.shape, jnp.float32) * std
    scale, bias = (np.asarray(values, np.float32)[:, None, None] for values in (encoder.scale, encoder.bias))
    return raw * scale + bias
