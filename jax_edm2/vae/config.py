"""What a VAE is made of: the fields of its config.json, and the tensors that follow from them."""

from dataclasses import dataclass, fields
from pathlib import Path

from jax_edm2 import strict_json
from jax_edm2.messages import brief, printable

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # its projections, as diffusers calls them

MOST_CONFIG = 2**16  # bytes; real ones have 700
_LIMITS = {
    "layers_per_block": (1, 64),
    "norm_num_groups": (1, 2**16),
    "latent_channels": (1, 4096),
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
}


class VAEError(ValueError):
    """A VAE that is missing, broken, or of another kind. The message begins with its path."""


@dataclass(frozen=True)
class VAEConfig:
    """The fields of diffusers' config.json that matter; the defaults are sd-vae-ft-mse's."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # of the encoder's levels; the decoder goes back
    layers_per_block: int = 2
    norm_num_groups: int = 32
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def scale(self) -> int:
        """How many pixels wide a latent is."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def decoder_tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the decoder, by its name in diffusers, with its shape."""
        found, latent, widths = _Tensors(), self.latent_channels, self.block_out_channels[::-1]
        if self.use_post_quant_conv:
            found.conv("post_quant_conv", latent, latent, 1)
        found.conv("decoder.conv_in", latent, widths[0], 3)
        found.mid_block("decoder.mid_block", widths[0], self.mid_block_add_attention)
        for level, (cin, cout) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            found.resnets(f"decoder.up_blocks.{level}", cin, cout, self.layers_per_block + 1)
            if level + 1 < len(widths):
                found.conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", cout, cout, 3)
        found.norm("decoder.conv_norm_out", widths[-1])
        found.conv("decoder.conv_out", widths[-1], self.out_channels, 3)
        return found

    @property
    def encoder_tensors(self) -> dict[str, tuple[int, ...]]:
        """Likewise of the encoder."""
        found, latent, widths = _Tensors(), self.latent_channels, self.block_out_channels
        found.conv("encoder.conv_in", self.in_channels, widths[0], 3)
        for level, (cin, cout) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            found.resnets(f"encoder.down_blocks.{level}", cin, cout, self.layers_per_block)
            if level + 1 < len(widths):
                found.conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", cout, cout, 3)
        found.mid_block("encoder.mid_block", widths[-1], self.mid_block_add_attention)
        found.norm("encoder.conv_norm_out", widths[-1])
        found.conv("encoder.conv_out", widths[-1], 2 * latent, 3)
        if self.use_quant_conv:
            found.conv("quant_conv", 2 * latent, 2 * latent, 1)
        return found


class _Tensors(dict[str, tuple[int, ...]]):
    """Shapes by name, layer by layer."""

    def conv(self, name: str, cin: int, cout: int, size: int):
        self[f"{name}.weight"], self[f"{name}.bias"] = (cout, cin, size, size), (cout,)

    def norm(self, name: str, channels: int):
        self[f"{name}.weight"] = self[f"{name}.bias"] = (channels,)

    def resnets(self, name: str, cin: int, cout: int, count: int):
        for i in range(count):
            resnet, channels = f"{name}.resnets.{i}", cout if i else cin
            self.norm(f"{resnet}.norm1", channels)
            self.conv(f"{resnet}.conv1", channels, cout, 3)
            self.norm(f"{resnet}.norm2", cout)
            self.conv(f"{resnet}.conv2", cout, cout, 3)
            if channels != cout:
                self.conv(f"{resnet}.conv_shortcut", channels, cout, 1)

    def mid_block(self, name: str, channels: int, attention: bool):
        self.resnets(name, channels, channels, 2)
        if attention:
            self.norm(f"{name}.attentions.0.group_norm", channels)
            for part in ATTENTION:
                layer = f"{name}.attentions.0.{part}"
                self[f"{layer}.weight"], self[f"{layer}.bias"] = (channels, channels), (channels,)


def read_vae_config(path: Path) -> VAEConfig:
    """What a VAE's config.json describes. Raises: VAEError."""
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
            raise VAEError(f"{path}: {name} is {brief(found[name])}, which makes no VAE")
    config = VAEConfig(**values)
    if any(width % config.norm_num_groups for width in config.block_out_channels):
        widths = list(config.block_out_channels)
        raise VAEError(
            f"{path}: block_out_channels {widths} make no VAE with {config.norm_num_groups} groups for every norm"
        )
    return config
