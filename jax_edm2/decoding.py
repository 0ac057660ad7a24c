"""From a network's outputs to pictures, as NVlabs' encoders decode them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_edm2.ops import sharded
from jax_edm2.record import Encoder
from jax_edm2.shapes import Images, Pictures
from jax_edm2.vae import VAEDecoder

PIXELS, VAE = "StandardRGBEncoder", "StabilityVAEEncoder"  # kinds of Encoder

Decode = Callable[[Any, jax.Array], jax.Array]


def decode_pixels(_params: Any, x: Images) -> Pictures:
    """Images x from -1 to 1 to uint8, x 127.5 + 128 truncated: [N, C, H, W]."""
    return jnp.clip(x * 127.5 + 128, 0, 255).astype(jnp.uint8)


def raw_latents(encoder: Encoder, x: Images) -> Images:
    """Whitened latents [N, C, h, w], as networks are trained on, to the VAE's own: (x - bias) / scale."""
    scale, bias = (np.asarray(values, np.float32)[:, None, None] for values in (encoder.scale, encoder.bias))
    return (x - bias) / scale


def make_decoder(
    encoder: Encoder | None, vae: tuple[VAEDecoder, Any] | None = None, batch: int = 4
) -> tuple[Decode, Any]:
    """(decode, params): decode(params, x) turns a network's outputs [N, C, H, W] into uint8 pictures.

    encoder: of the checkpoint's record; None is for pixels. vae: what `load_vae` gave, for latents. batch: how many
    the VAE decodes at once, which bounds its memory.
    Raises: ValueError for an encoder that is not known, or a VAE that is missing; decode does if it does not fit.
    """
    if encoder is None or encoder.kind == PIXELS:
        return decode_pixels, ()
    if encoder.kind != VAE or encoder.scale is None or encoder.bias is None:
        raise ValueError(f"nobody here knows how to decode what a {encoder.kind} encodes")
    if vae is None:
        raise ValueError("latents take a VAE to become pictures")
    decoder, params = vae
    channels, recorded = decoder.config.latent_channels, {len(encoder.scale), len(encoder.bias)}

    def decode(params, x):
        if {x.shape[1]} | recorded != {channels}:
            raise ValueError(
                f"the VAE decodes {channels} channels, the network draws {x.shape[1]}, and its encoder's record is of "
                f"{' and '.join(map(str, recorded))}"
            )

        def decode_all(z):
            return (jnp.clip(decoder(params, z), 0, 1) * 255).astype(jnp.uint8)

        z = raw_latents(encoder, x)
        if sharded(z):  # of latents that are on many devices, each has few
            return decode_all(z)
        return lax.map(lambda one: decode_all(one[None])[0], z, batch_size=batch)

    return decode, params
