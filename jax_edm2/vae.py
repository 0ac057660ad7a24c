"""The decoder of Stability's VAE, which turns the latents of img512 networks into pictures.

It is that of diffusers' AutoencoderKL, of any size: tensors have its names and PyTorch's layouts, and everything is
computed in the tensors' dtype, with norms in float32. Published weights: huggingface.co/stabilityai/sd-vae-ft-mse.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from jax_edm2 import strict_json
from jax_edm2.messages import brief, listing, printable
from jax_edm2.ops import convolve
from jax_edm2.safetensors_format import CODES, File, FormatError
from jax_edm2.shapes import Images

NORM_EPS = 1e-6
WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"  # what diffusers calls the files of a VAE

MOST_CONFIG = 2**16  # bytes; real ones have 700
_DECODER = ("decoder.", "post_quant_conv.")  # how the names of its tensors begin
_LIMITS = {
    "layers_per_block": (0, 64),
    "norm_num_groups": (1, 2**16),
    "latent_channels": (1, 4096),
    "out_channels": (1, 4096),
}

# What the projections of the attention were called before diffusers 0.18, as in published files.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class VAEError(ValueError):
    """A VAE that is missing, broken, or of another kind. The message begins with its path."""


@dataclass(frozen=True)
class VAEConfig:
    """The fields of diffusers' config.json that matter to the decoder; the defaults are sd-vae-ft-mse's."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # of the encoder's levels; the decoder goes back
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4
    out_channels: int = 3
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Channels that come in and go out, of every level from the coarsest."""
        widths = self.block_out_channels[::-1]
        return list(zip((widths[0], *widths), widths, strict=False))

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the decoder, by its name in diffusers, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {}

        def conv(name, cin, cout, size):
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (cout, cin, size, size), (cout,)

        def norm(name, channels):
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

        def resnet(name, cin, cout):
            norm(f"{name}.norm1", cin)
            conv(f"{name}.conv1", cin, cout, 3)
            norm(f"{name}.norm2", cout)
            conv(f"{name}.conv2", cout, cout, 3)
            if cin != cout:
                conv(f"{name}.conv_shortcut", cin, cout, 1)

        latent, top = self.latent_channels, self.block_out_channels[-1]
        if self.use_post_quant_conv:
            conv("post_quant_conv", latent, latent, 1)
        conv("decoder.conv_in", latent, top, 3)
        for i in range(2):
            resnet(f"decoder.mid_block.resnets.{i}", top, top)
        if self.mid_block_add_attention:
            name = "decoder.mid_block.attentions.0"
            norm(f"{name}.group_norm", top)
            for part in _OLD_NAMES:
                shapes[f"{name}.{part}.weight"], shapes[f"{name}.{part}.bias"] = (top, top), (top,)
        for level, (cin, cout) in enumerate(self.levels):
            for i in range(self.layers_per_block + 1):
                resnet(f"decoder.up_blocks.{level}.resnets.{i}", cout if i else cin, cout)
            if level + 1 < len(self.levels):
                conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", cout, cout, 3)
        norm("decoder.conv_norm_out", self.block_out_channels[0])
        conv("decoder.conv_out", self.block_out_channels[0], self.out_channels, 3)
        return shapes


@dataclass(frozen=True)
class VAEDecoder:
    """config, and what `load_vae` gives: decoder(params, latents) -> pictures."""

    config: VAEConfig = field(default_factory=VAEConfig)

    @property
    def scale(self) -> int:
        """How many pixels wide a latent is."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def __call__(self, params: Mapping[str, jax.Array], z: Images) -> jax.Array:
        """Raw latents z [N, 4, h, w] to pictures [N, 3, 8 h, 8 w], by the published VAE from 0 to 1.

        Another VAE has latent_channels and out_channels, and `scale` for 8. params: by the names in `config.tensors`,
        all in the dtype of z, which is that of the pictures. In between the channels are last.
        """
        config = self.config
        conv, norm = partial(_conv, params), partial(_norm, params, config.norm_num_groups)

        def resnet(name, x):
            y = conv(f"{name}.conv1", jax.nn.silu(norm(f"{name}.norm1", x)))
            y = conv(f"{name}.conv2", jax.nn.silu(norm(f"{name}.norm2", y)))
            return y + (conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in params else x)

        x = z.transpose(0, 2, 3, 1)
        x = conv("post_quant_conv", x) if config.use_post_quant_conv else x
        x = resnet("decoder.mid_block.resnets.0", conv("decoder.conv_in", x))
        if config.mid_block_add_attention:
            name = "decoder.mid_block.attentions.0"
            x = x + _attention(params, name, norm(f"{name}.group_norm", x))
        x = resnet("decoder.mid_block.resnets.1", x)
        for level in range(len(config.levels)):
            for i in range(config.layers_per_block + 1):
                x = resnet(f"decoder.up_blocks.{level}.resnets.{i}", x)
            if level + 1 < len(config.levels):
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", x)
        x = conv("decoder.conv_out", jax.nn.silu(norm("decoder.conv_norm_out", x)))
        return x.transpose(0, 3, 1, 2)


def _conv(params, name: str, x: jax.Array) -> jax.Array:
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return convolve(x, weight, weight.shape[-1] // 2) + bias


def _norm(params, groups: int, name: str, x: jax.Array) -> jax.Array:
    """Group norm."""
    n, h, w, c = x.shape
    y = x.reshape(n, h, w, groups, c // groups).astype(jnp.float32)
    y = y - jnp.mean(y, axis=(1, 2, 4), keepdims=True)
    y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 2, 4), keepdims=True) + NORM_EPS)
    scale, shift = (params[f"{name}.{part}"].astype(jnp.float32) for part in ("weight", "bias"))
    return (y.reshape(x.shape) * scale + shift).astype(x.dtype)


def _attention(params, name: str, x: jax.Array) -> jax.Array:
    """Self-attention between all positions, with a single head as wide as x."""
    n, h, w, c = x.shape
    tokens = x.reshape(n, h * w, c)
    layers = [(params[f"{name}.{part}.weight"], params[f"{name}.{part}.bias"]) for part in _OLD_NAMES]
    q, k, v = (tokens @ weight.T + bias for weight, bias in layers[:3])
    out, bias = layers[3]
    weights = jax.nn.softmax((q @ k.swapaxes(1, 2) / math.sqrt(c)).astype(jnp.float32), axis=2).astype(x.dtype)
    return (weights @ v @ out.T + bias).reshape(x.shape)


def load_vae(path: Path, config: Path | None = None, *, dtype=jnp.float32) -> tuple[VAEDecoder, dict[str, jax.Array]]:
    """A VAE's decoder and its tensors, from diffusers' folder or its safetensors file.

    config: its config.json; by default that beside the file, or the published VAE's if there is none. dtype: of the
    tensors, and of what is computed with them.
    Raises: VAEError if it is missing, broken, or no AutoencoderKL with plain blocks.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise VAEError(
            f"{path}: there is no such file; a VAE is a safetensors file, or diffusers' folder with {WEIGHTS}"
        )
    config = config or (folder / CONFIG if (folder / CONFIG).is_file() else None)
    decoder = VAEDecoder(read_vae_config(config) if config else VAEConfig())
    try:
        with File(path) as file:
            stored = {name: name if name in file.entries else _old_name(name) for name in decoder.config.tensors}
            problems = _problems(file, stored, decoder.config.tensors)
            if problems:
                raise VAEError(f"{path}: does not hold the decoder of an AutoencoderKL: " + listing(problems))
            return decoder, {name: jnp.asarray(file.array(stored[name]), dtype) for name in stored}
    except FormatError as error:
        raise VAEError(f"{path}: {error}; pickled VAEs are not read") from error
    except OSError as error:
        raise VAEError(f"{path}: cannot be read ({error.strerror or error})") from error


def _problems(file: File, stored: Mapping[str, str], tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Where a file's tensors differ from a decoder's, which have other names there: `stored`."""
    problems = []
    for name, shape in tensors.items():
        entry = file.entries.get(stored[name])
        if entry is None:
            problems.append(f"- {name} {list(shape)} is missing")
        elif entry.shape != shape:
            problems.append(f"! {name} is {list(entry.shape)}, should be {list(shape)}")
        elif entry.dtype not in CODES:
            problems.append(f"! {name} is {entry.dtype}, should be one of {', '.join(CODES)}")
    unknown = sorted(name for name in file.entries.keys() - {*stored.values()} if name.startswith(_DECODER))
    return problems + [f"+ {printable(name[:200])} is not part of it" for name in unknown]


def _old_name(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def read_vae_config(path: Path) -> VAEConfig:
    """The decoder that a VAE's config.json describes. Raises: VAEError."""
    try:
        found = strict_json.load(path, most_bytes=MOST_CONFIG)
    except (OSError, strict_json.JSONError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VAEError(f"{path}: is no config.json of a VAE ({reason})") from error
    if not isinstance(found, dict):
        raise VAEError(f"{path}: is no config.json of a VAE ({brief(found)})")
    kind, activation = found.get("_class_name", "AutoencoderKL"), found.get("act_fn", "silu")
    if kind != "AutoencoderKL" or activation != "silu":
        kind, activation = (printable(v[:60]) if isinstance(v, str) else "nameless" for v in (kind, activation))
        raise VAEError(f"{path}: describes a {kind} with {activation}; only AutoencoderKL with silu is known")
    values = {f.name: found[f.name] for f in fields(VAEConfig) if f.name in found}
    for name, value in values.items():
        default, (least, most) = getattr(VAEConfig(), name), _LIMITS.get(name, (0, 0))
        if name == "block_out_channels":
            values[name] = value = tuple(value) if isinstance(value, list) else ()
            sound = 0 < len(value) < 10 and all(type(width) is int and 0 < width <= 2**16 for width in value)
        else:
            sound = type(value) is type(default) and (isinstance(value, bool) or least <= value <= most)
        if not sound:
            raise VAEError(f"{path}: {name} is {brief(found[name])}, which makes no decoder")
    config = VAEConfig(**values)
    if any(width % config.norm_num_groups for width in config.block_out_channels):
        widths = list(config.block_out_channels)
        raise VAEError(
            f"{path}: block_out_channels {widths} make no decoder with {config.norm_num_groups} groups for every norm"
        )
    return config
