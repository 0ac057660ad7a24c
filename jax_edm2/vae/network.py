"""The encoder and the decoder: functions of params, a dictionary of tensors by their names in diffusers.

Arrays are NCHW outside, and have their channels last inside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from jax_edm2.ops import convolve
from jax_edm2.shapes import Activations, Images
from jax_edm2.vae.config import ATTENTION, VAEConfig

NORM_EPS = 1e-6
LOGVAR = (-30.0, 20.0)  # diffusers keeps the logarithm of the variance within these


@dataclass(frozen=True)
class VAEDecoder:
    """config, and what `load_vae` gives: decoder(params, latents) -> pictures."""

    config: VAEConfig = field(default_factory=VAEConfig)

    @property
    def scale(self) -> int:
        """How many pixels wide a latent is."""
        return self.config.scale

    def __call__(self, params: Mapping[str, jax.Array], z: Images) -> jax.Array:
        """Raw latents z [N, 4, h, w] to pictures [N, 3, 8 h, 8 w], by the published VAE from 0 to 1.

        Another VAE has latent_channels and out_channels, and `scale` for 8. params: by the names in
        `config.decoder_tensors`, all in the dtype of z, which is that of the pictures.
        """
        config, layers = self.config, _Layers(params, self.config.norm_num_groups)
        x = z.transpose(0, 2, 3, 1)
        x = layers.conv("post_quant_conv", x) if config.use_post_quant_conv else x
        x = layers.mid_block("decoder.mid_block", layers.conv("decoder.conv_in", x))
        for level in range(len(config.block_out_channels)):
            x = layers.resnets(f"decoder.up_blocks.{level}", x, config.layers_per_block + 1)
            if level + 1 < len(config.block_out_channels):
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = layers.conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", x)
        x = layers.conv("decoder.conv_out", jax.nn.silu(layers.norm("decoder.conv_norm_out", x)))
        return x.transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class VAEEncoder:
    """config, and what `load_vae_encoder` gives: encoder(params, pictures) -> means and standard deviations."""

    config: VAEConfig = field(default_factory=VAEConfig)

    def __call__(self, params: Mapping[str, jax.Array], x: Images) -> jax.Array:
        """Pictures x [N, 3, 8 h, 8 w] to [N, 8, h, w]: the means of 4 raw latents, then their standard deviations.

        NVlabs gives the published VAE pictures from 0 to 1, which is what its decoder then makes. Another VAE has
        in_channels, latent_channels and `scale`, as the decoder. params: by the names in `config.encoder_tensors`.
        """
        config, layers = self.config, _Layers(params, self.config.norm_num_groups)
        h = layers.conv("encoder.conv_in", x.transpose(0, 2, 3, 1))
        for level in range(len(config.block_out_channels)):
            h = layers.resnets(f"encoder.down_blocks.{level}", h, config.layers_per_block)
            if level + 1 < len(config.block_out_channels):
                h = layers.halved(f"encoder.down_blocks.{level}.downsamplers.0.conv", h)
        h = layers.mid_block("encoder.mid_block", h)
        h = layers.conv("encoder.conv_out", jax.nn.silu(layers.norm("encoder.conv_norm_out", h)))
        h = layers.conv("quant_conv", h) if config.use_quant_conv else h
        mean, logvar = jnp.split(h, 2, axis=-1)
        return jnp.concatenate([mean, jnp.exp(jnp.clip(logvar, *LOGVAR) / 2)], axis=-1).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class _Layers:
    """Layers by their names, on activations [N, H, W, C]."""

    params: Mapping[str, jax.Array]
    groups: int  # of every norm

    def conv(self, name: str, x: Activations) -> jax.Array:
        weight, bias = self.params[f"{name}.weight"], self.params[f"{name}.bias"]
        return convolve(x, weight, weight.shape[-1] // 2) + bias

    def halved(self, name: str, x: Activations) -> jax.Array:
        """Convolution of 3x3 with stride 2, whose zeros are below and to the right."""
        weight, bias = self.params[f"{name}.weight"], self.params[f"{name}.bias"]
        layouts = ("NHWC", "HWIO", "NHWC")
        kernel = weight.transpose(2, 3, 1, 0)
        return lax.conv_general_dilated(x, kernel, (2, 2), [(0, 1), (0, 1)], dimension_numbers=layouts) + bias

    def norm(self, name: str, x: Activations) -> jax.Array:
        """Group norm."""
        n, h, w, c = x.shape
        y = x.reshape(n, h, w, self.groups, c // self.groups).astype(jnp.float32)
        y = y - _mean(y)
        y = y * lax.rsqrt(_mean(jnp.square(y)) + NORM_EPS)
        scale, shift = (self.params[f"{name}.{part}"].astype(jnp.float32) for part in ("weight", "bias"))
        return (y.reshape(x.shape) * scale + shift).astype(x.dtype)

    def resnets(self, name: str, x: Activations, count: int, first: int = 0) -> jax.Array:
        """So many residual blocks of a level, from number `first` on."""
        for i in range(first, first + count):
            block = f"{name}.resnets.{i}"
            y = self.conv(f"{block}.conv1", jax.nn.silu(self.norm(f"{block}.norm1", x)))
            y = self.conv(f"{block}.conv2", jax.nn.silu(self.norm(f"{block}.norm2", y)))
            x = y + (self.conv(f"{block}.conv_shortcut", x) if f"{block}.conv_shortcut.weight" in self.params else x)
        return x

    def mid_block(self, name: str, x: Activations) -> jax.Array:
        """Two residual blocks, and attention in between, where there is one."""
        x = self.resnets(name, x, 1)
        if f"{name}.attentions.0.group_norm.weight" in self.params:
            x = x + self.attention(f"{name}.attentions.0", self.norm(f"{name}.attentions.0.group_norm", x))
        return self.resnets(name, x, 1, first=1)

    def attention(self, name: str, x: Activations) -> jax.Array:
        """Self-attention between all positions, with a single head as wide as x."""
        n, h, w, c = x.shape
        tokens = x.reshape(n, h * w, c)
        layers = [(self.params[f"{name}.{part}.weight"], self.params[f"{name}.{part}.bias"]) for part in ATTENTION]
        q, k, v = (tokens @ weight.T + bias for weight, bias in layers[:3])
        out, bias = layers[3]
        weights = jax.nn.softmax((q @ k.swapaxes(1, 2) / math.sqrt(c)).astype(jnp.float32), axis=2).astype(x.dtype)
        return (weights @ v @ out.T + bias).reshape(x.shape)


def _mean(x: jax.Array) -> jax.Array:
    """Over all but the first axis and the groups of x [N, H, W, groups, C].

    Axis by axis: XLA would add up a quarter of a million values one after the other on a CPU, to five digits.
    """
    for axis in (2, 1, 4):
        x = jnp.mean(x, axis=axis, keepdims=True)
    return x
