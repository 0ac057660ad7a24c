"""The configuration of an EDM2 network and, derived from it, its architecture as plain data. Imports no jax."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from jax_edm2.messages import brief, listing, printable


class ConfigError(ValueError):
    """A configuration that describes no EDM2 network; the message lists everything that is wrong with it."""


@dataclass(frozen=True)
class EDM2Config:
    """Constructor arguments of NVlabs' `Precond` (with those of its UNet and Blocks), and their defaults.

    Hashable, so that it can be a field of a Flax module. Sequences of any kind become tuples.

    Raises: ConfigError.
    """

    img_resolution: int  # height and width of images or latents
    img_channels: int
    label_dim: int  # number of classes; 0 = unconditional
    use_fp16: bool = True  # did NVlabs' code run this network in float16 on CUDA?
    sigma_data: float = 0.5  # standard deviation of the training data
    logvar_channels: int = 128  # Fourier features of the uncertainty u(sigma)
    model_channels: int = 192  # what the multipliers below multiply
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)  # per resolution, highest first
    channel_mult_noise: int | None = None  # Fourier features of the noise level; None = as channel_mult[0]
    channel_mult_emb: int | None = None  # embedding; None = the widest of channel_mult
    num_blocks: int = 3  # per resolution
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5  # share of the label in the embedding
    concat_balance: float = 0.5  # share of the skip connections in the decoder's concatenations
    resample_filter: tuple[float, ...] = (1, 1)  # separable, an even number of taps
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float = 0.3  # share of the residual branch
    attn_balance: float = 0.3  # share of the attention branch
    clip_act: float | None = 256  # activations are clipped to +-clip_act after every block; None = not

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        problems = list(_problems(self))
        if problems:
            raise ConfigError(listing(problems))

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types; `EDM2Config(**fields)` is the way back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def halvings(self) -> int:
        """How many times smaller images are at the lowest level."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per level, highest resolution first."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def noise_channels(self) -> int:
        """Fourier features of the noise level."""
        mult = self.channel_mult[0] if self.channel_mult_noise is None else self.channel_mult_noise
        return self.model_channels * mult

    @property
    def emb_channels(self) -> int:
        """Channels of the embedding of noise level and label."""
        mult = max(self.channel_mult) if self.channel_mult_emb is None else self.channel_mult_emb
        return self.model_channels * mult

    @property
    def architecture(self) -> "Architecture":
        """The U-Net's blocks."""
        return Architecture.of(self)


def _problems(config: EDM2Config):
    """Everything that is wrong with the fields, one sentence each."""
    ok = True
    for name, least in _INTEGERS.items():
        value, most = getattr(config, name), _MOST.get(name, _LIMIT)
        if value is None and name in _OPTIONAL:
            continue
        if not _is_integer(value) or not least <= value <= most:
            ok = False
            yield f"{name} must be an integer from {least} to {most}, not {brief(value)}"
    for name, least in _INTEGER_TUPLES.items():
        value = getattr(config, name)
        good = isinstance(value, tuple) and all(_is_integer(v) and least <= v <= _LIMIT for v in value)
        if not good or len(value) > 64:
            ok = False
            yield f"{name} must be a short list of integers from {least} to {_LIMIT}, not {brief(value)}"
    for name, (low, high) in _FLOATS.items():
        value = getattr(config, name)
        if value is None and name in _OPTIONAL:
            continue
        if not _is_number(value) or not low <= value <= high:
            yield f"{name} must be a number from {low:g} to {high:g}, not {brief(value)}"
    if not isinstance(config.use_fp16, bool):
        yield f"use_fp16 must be true or false, not {brief(config.use_fp16)}"
    taps = config.resample_filter
    if not isinstance(taps, tuple) or not all(map(_is_number, taps)) or len(taps) % 2 or not 0 < len(taps) <= 64:
        yield f"resample_filter must be an even number of numbers, not {brief(taps)}"
    elif sum(taps) == 0:
        yield f"resample_filter must not sum to 0, as {brief(taps)} does"
    if not ok:
        return
    if not config.channel_mult:
        yield "channel_mult must not be empty"
        return
    if config.img_resolution % config.halvings:
        levels = len(config.channel_mult)
        yield f"img_resolution must be a multiple of {config.halvings} for {levels} levels, not {config.img_resolution}"
    if (blocks := len(config.channel_mult) * (2 * config.num_blocks + 2)) > MOST_BLOCKS:
        yield f"num_blocks and channel_mult make {blocks:,} blocks; at most {MOST_BLOCKS:,} are supported"
        return
    architecture = config.architecture
    for block in architecture.encoder + architecture.decoder:
        if block.num_heads and block.out_channels % block.num_heads:
            yield f"{block.out_channels} channels of {block.name} do not divide into {block.num_heads} attention heads"
            return
    # No tensor has the resolution in its shape: a file of a few bytes could ask for an image of any size.
    activations = config.img_resolution**2 * max(config.widths[0], config.img_channels)
    if activations > PLAIN_SIZE:
        parameters = sum(math.prod(shape) for shape in expected_tree(config).values())
        if activations > 64 * parameters:
            yield f"img_resolution {config.img_resolution} is too large for a network of {parameters:,} parameters"


MOST_BLOCKS = 1000  # published networks have 36
PLAIN_SIZE = 2**20  # values in an image's activations, of which nobody asks what justifies them

_LIMIT = 2**20  # far above any network that fits a machine; keeps products small
_OPTIONAL = {"channel_mult_noise", "channel_mult_emb", "clip_act"}
_INTEGERS = {
    "img_resolution": 1,
    "img_channels": 1,
    "label_dim": 0,
    "logvar_channels": 1,
    "model_channels": 1,
    "channel_mult_noise": 1,
    "channel_mult_emb": 1,
    "num_blocks": 0,
    "channels_per_head": 1,
}
_MOST = {"num_blocks": 1000}
_INTEGER_TUPLES = {"channel_mult": 1, "attn_resolutions": 0}
_BALANCE = (-1000, 1000)  # the papers' are 0 to 1; beyond them one side is subtracted
_FLOATS = {
    "sigma_data": (1e-6, 1e6),
    "label_balance": _BALANCE,
    "concat_balance": _BALANCE,
    "dropout": (0, 1),
    "res_balance": _BALANCE,
    "attn_balance": _BALANCE,
    "clip_act": (1e-6, math.inf),
}


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True)
class BlockSpec:
    """One block of the U-Net (Fig. 21 of arXiv 2312.02696)."""

    name: str  # '64x64_block0'
    flavor: str  # 'enc' or 'dec'
    in_channels: int
    out_channels: int
    resolution: int  # of its output
    resample: str  # 'keep', 'down' or 'up'
    concat: bool  # does a skip connection join its input?
    num_heads: int  # 0 = no attention


@dataclass(frozen=True)
class Architecture:
    """A U-Net as plain data: an input convolution and blocks in running order, each side's apart."""

    conv_in: str  # name of the first convolution: '64x64_conv'
    encoder: tuple[BlockSpec, ...]
    decoder: tuple[BlockSpec, ...]

    @classmethod
    def of(cls, config: EDM2Config) -> Self:
        def block(flavor, suffix, cin, cout, *, resample="keep", concat=False, attention=False):
            heads = cout // config.channels_per_head if attention else 0
            return BlockSpec(f"{res}x{res}_{suffix}", flavor, cin, cout, res, resample, concat, heads)

        encoder: list[BlockSpec] = []
        decoder: list[BlockSpec] = []
        channels = config.widths[0]
        skips = [channels]
        for level, width in enumerate(config.widths):
            res = config.img_resolution >> level
            if level > 0:
                encoder.append(block("enc", "down", channels, channels, resample="down"))
                skips.append(channels)
            for i in range(config.num_blocks):
                attention = res in config.attn_resolutions
                encoder.append(block("enc", f"block{i}", channels, width, attention=attention))
                channels = width
                skips.append(channels)
        lowest = len(config.widths) - 1
        for level in range(lowest, -1, -1):
            res, width = config.img_resolution >> level, config.widths[level]
            if level == lowest:
                decoder.append(block("dec", "in0", channels, channels, attention=True))
                decoder.append(block("dec", "in1", channels, channels))
            else:
                decoder.append(block("dec", "up", channels, channels, resample="up"))
            for i in range(config.num_blocks + 1):
                attention = res in config.attn_resolutions
                cin = channels + skips.pop()
                decoder.append(block("dec", f"block{i}", cin, width, concat=True, attention=attention))
                channels = width
        res = config.img_resolution
        return cls(f"{res}x{res}_conv", tuple(encoder), tuple(decoder))


def expected_tree(config: EDM2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all variables of `Precond(config)` by `/`-joined path, in the order in which the network uses them.

    Convolution weights are [out, in, 3, 3] or [out, in, 1, 1], linear weights [out, in], gains ().
    """
    tree: dict[str, tuple[int, ...]] = {}

    def weight(path, *shape):
        tree[f"params/{path}/mpconv_weight"] = shape

    def fourier(path, channels):
        tree[f"constants/{path}/freqs"] = (channels,)
        tree[f"constants/{path}/phases"] = (channels,)

    emb, noise = config.emb_channels, config.noise_channels
    architecture = config.architecture
    fourier("unet/emb_t_fourier", noise)
    weight("unet/emb_t_linear", emb, noise)
    if config.label_dim:
        weight("unet/emb_label", emb, config.label_dim)
    weight(f"unet/enc_{architecture.conv_in}", config.widths[0], config.img_channels + 1, 3, 3)
    for spec in architecture.encoder + architecture.decoder:
        path = f"unet/{spec.flavor}_{spec.name}"
        cin, cout = spec.in_channels, spec.out_channels
        tree[f"params/{path}/emb_gain"] = ()
        weight(f"{path}/conv_res0", cout, cout if spec.flavor == "enc" else cin, 3, 3)
        weight(f"{path}/emb_linear", cout, emb)
        weight(f"{path}/conv_res1", cout, cout, 3, 3)
        if cin != cout:
            weight(f"{path}/conv_skip", cout, cin, 1, 1)
        if spec.num_heads:
            weight(f"{path}/attn_qkv", 3 * cout, cout, 1, 1)
            weight(f"{path}/attn_proj", cout, cout, 1, 1)
    weight("unet/out_conv", config.img_channels, config.widths[0], 3, 3)
    tree["params/unet/out_gain"] = ()
    fourier("logvar_fourier_t", config.logvar_channels)
    weight("logvar_linear", 1, config.logvar_channels)
    return tree


def check_tree(
    config: EDM2Config, shapes: Mapping[str, tuple[int, ...]], name: Callable[[str], str] = str
) -> list[str]:
    """What in `shapes` differs from the tree of `config`, a phrase each: `- missing`, `+ extra`, `! shape`.

    `name` turns a tree path into what the user knows it as.
    """
    return differences(expected_tree(config), shapes, name)


def differences(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], name: Callable[[str], str] = str
) -> list[str]:
    """What in `shapes` differs from the expected ones, by path, as `check_tree` says it."""
    lines = [f"- {name(path)} {list(shape)} is missing" for path, shape in expected.items() if path not in shapes]
    extra = (path for path in shapes if path not in expected)  # of any length, with anything in it
    lines += [f"+ {printable(name(path)[:200])} {list(shapes[path])} is not part of it" for path in extra]
    for path, shape in expected.items():
        if path in shapes and tuple(shapes[path]) != shape:
            lines.append(f"! {name(path)} is {list(shapes[path])}, should be {list(shape)}")
    return lines
