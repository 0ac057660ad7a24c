"""Taps: the named points of an EDM2 network where both frameworks are compared, in the order of computation.

A tap is a scope (a block, or one of the parts around the blocks) and an operation in it. Scopes carry the names that
the modules have in a snapshot. This file knows the names; `torch_taps` and `jax_taps` know how to reach the values.
"""

from dataclasses import dataclass

from jax_edm2.config import BlockSpec, EDM2Config

INPUT, EMBEDDING, OUT_CONV, OUTPUT, LOGVAR = "input", "unet.embedding", "unet.out_conv", "output", "logvar"

# What each operation is, for reports.
OPERATIONS = {
    "c_noise": "ln(sigma) / 4",
    "scaled_input": "c_in x",
    "emb_fourier": "Fourier features of c_noise",
    "emb_noise": "linear layer of the noise features",
    "label_scale": "labels times sqrt(label_dim)",
    "emb_label": "linear layer of the labels",
    "emb_sum": "magnitude-preserving sum of noise and label",
    "emb_silu": "SiLU, giving the embedding",
    "ones": "the input with a channel of ones",
    "conv": "convolution",
    "concat": "magnitude-preserving concatenation with the skip connection",
    "resample": "down- or upsampling",
    "conv_skip": "1x1 convolution of the main path",
    "pixel_norm": "pixel norm",
    "silu0": "SiLU before conv_res0",
    "conv_res0": "first 3x3 convolution of the residual branch",
    "emb_linear": "linear layer of the embedding, times emb_gain",
    "modulation": "residual branch times (emb_linear + 1)",
    "silu1": "SiLU before conv_res1",
    "dropout": "dropout, which must do nothing here",
    "conv_res1": "second 3x3 convolution of the residual branch",
    "res_sum": "magnitude-preserving sum of main path and residual branch",
    "attn_qkv": "1x1 convolution giving q, k and v",
    "qkv_norm": "pixel norm of q, k and v",
    "attention": "softmax(q k) v",
    "attn_proj": "1x1 convolution of the attention's result",
    "attn_sum": "magnitude-preserving sum with the attention branch",
    "clip": "clipping to +-clip_act, the block's output",
    "output": "the block's output",
    "denoised": "D = c_skip x + c_out F",
    "logvar_fourier": "Fourier features of c_noise for logvar",
    "logvar_linear": "linear layer giving logvar",
}


@dataclass(frozen=True, order=True)
class Tap:
    scope: str
    operation: str

    def __str__(self):
        return f"{self.scope}/{self.operation}"


EMBEDDED = Tap(EMBEDDING, "emb_silu")
DENOISED, LOG_VARIANCE = Tap(OUTPUT, "denoised"), Tap(LOGVAR, "logvar_linear")  # what the network returns


class Enough(Exception):  # noqa: N818
    """Raised by a visitor to end a forward pass that has shown what it was to show."""


def block_scope(spec: BlockSpec) -> str:
    """A block's name in a snapshot: unet.enc.64x64_block0."""
    return f"unet.{spec.flavor}.{spec.name}"


def conv_in_scope(config: EDM2Config) -> str:
    return f"unet.enc.{config.architecture.conv_in}"


def scopes(config: EDM2Config) -> dict[str, tuple[str, ...]]:
    """Every scope in the order of computation, and its operations in theirs."""
    label = ("label_scale", "emb_label", "emb_sum") if config.label_dim else ()
    architecture = config.architecture
    return {
        INPUT: ("c_noise", "scaled_input"),
        EMBEDDING: ("emb_fourier", "emb_noise", *label, "emb_silu"),
        conv_in_scope(config): ("ones", "conv"),
        **{block_scope(s): _block_operations(s, config) for s in architecture.encoder + architecture.decoder},
        OUT_CONV: ("conv",),
        OUTPUT: ("denoised",),
        LOGVAR: ("logvar_fourier", "logvar_linear"),
    }


def _block_operations(spec: BlockSpec, config: EDM2Config) -> tuple[str, ...]:
    skip = ("conv_skip",) if spec.in_channels != spec.out_channels else ()
    residual = ["silu0", "conv_res0", "emb_linear", "modulation", "silu1", "conv_res1"]
    if config.dropout:
        residual.insert(5, "dropout")
    return (
        *(("concat",) if spec.concat else ()),
        *(("resample",) if spec.resample != "keep" else ()),
        *((*skip, "pixel_norm") if spec.flavor == "enc" else ()),
        *residual,
        *(skip if spec.flavor == "dec" else ()),
        "res_sum",
        *(("attn_qkv", "qkv_norm", "attention", "attn_proj", "attn_sum") if spec.num_heads else ()),
        last_operation(config),
    )


def last_operation(config: EDM2Config) -> str:
    """The name under which a block's output is recorded."""
    return "output" if config.clip_act is None else "clip"


def before_clip(spec: BlockSpec) -> str:
    """The operation whose result is clipped."""
    return "attn_sum" if spec.num_heads else "res_sum"


def taps(config: EDM2Config) -> list[Tap]:
    """All taps of a network in the order of computation."""
    return [Tap(scope, operation) for scope, operations in scopes(config).items() for operation in operations]


def tap_sizes(config: EDM2Config) -> dict[Tap, int]:
    """How many elements the value at every tap has, for one image."""
    pixels, emb, first = config.img_resolution**2, config.emb_channels, config.widths[0]
    sizes = {
        INPUT: {"c_noise": 1, "scaled_input": config.img_channels * pixels},
        EMBEDDING: {"emb_fourier": config.noise_channels, "label_scale": config.label_dim},
        conv_in_scope(config): {"ones": (config.img_channels + 1) * pixels, "conv": first * pixels},
        OUT_CONV: {"conv": config.img_channels * pixels},
        OUTPUT: {"denoised": config.img_channels * pixels},
        LOGVAR: {"logvar_fourier": config.logvar_channels, "logvar_linear": 1},
    }
    for spec in config.architecture.encoder + config.architecture.decoder:
        cin, cout, area = spec.in_channels, spec.out_channels, spec.resolution**2
        sizes[block_scope(spec)] = dict.fromkeys(_block_operations(spec, config), cout * area) | {
            "concat": cin * area,
            "resample": cin * area,
            "silu0": (cout if spec.flavor == "enc" else cin) * area,
            "emb_linear": cout,
            "attn_qkv": 3 * cout * area,
            "qkv_norm": 3 * cout * area,
        }
    return {tap: sizes[tap.scope].get(tap.operation, emb) for tap in taps(config)}


def tap_of_parameter(name: str, config: EDM2Config) -> Tap:
    """The tap at which a wrong value of the parameter or buffer `name` (of a snapshot) shows first."""
    parts = name.split(".")
    if parts[0] in ("logvar_fourier", "logvar_linear"):
        return Tap(LOGVAR, parts[0])
    if parts[1] in ("emb_fourier", "emb_noise", "emb_label"):
        return Tap(EMBEDDING, parts[1])
    if parts[1] in ("out_conv", "out_gain"):
        return Tap(OUT_CONV, "conv")
    scope = ".".join(parts[:3])
    if scope == conv_in_scope(config):
        return Tap(scope, "conv")
    return Tap(scope, "emb_linear" if parts[3] == "emb_gain" else parts[3])


def boundaries(config: EDM2Config) -> set[Tap]:
    """Taps after which an isolated pass continues with the truth: all but those inside blocks."""
    architecture = config.architecture
    blocks = {block_scope(spec) for spec in architecture.encoder + architecture.decoder}
    between = ("concat", last_operation(config))
    return {tap for tap in taps(config) if tap.scope not in blocks or tap.operation in between}
