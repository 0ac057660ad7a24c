"""What the shapes of a network's tensors say of its configuration, and what has to be assumed where nothing says it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jax_edm2.config import EDM2Config

_BLOCK = re.compile(r"unet\.(enc|dec)\.(\d+)x\2_(conv|down|up|in0|in1|block\d+)(\.\w+)?\.weight")

# What no shape depends on, or not on it alone.
SILENT = (
    "use_fp16", "sigma_data", "label_balance", "concat_balance", "resample_filter", "channels_per_head", "dropout",
    "res_balance", "attn_balance", "clip_act",
)  # fmt: skip


class InferenceError(ValueError):
    """Tensors that are of no EDM2 network. The message is a phrase: 'has no first convolution'."""


def seen(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Constructor arguments that the shapes of tensors, by NVlabs' name, imply. Raises: InferenceError."""
    blocks = [(match, shapes[name]) for name in shapes if len(name) < 200 and (match := _BLOCK.fullmatch(name))]
    first = [(int(match[2]), shape) for match, shape in blocks if match[3] == "conv" and match[1] == "enc"]
    if len(first) != 1 or len(first[0][1]) != 4:
        raise InferenceError("has no first convolution")
    resolution, (_, channels, _, _) = first[0]
    widths = {int(m[2]): s[0] for m, s in blocks if (m[1], m[3], m[4]) == ("dec", "block0", ".conv_res1") and s}
    levels = sorted(widths, reverse=True)
    if levels != [resolution >> i for i in range(len(levels))] or not levels:
        raise InferenceError(f"has no decoder for images of {resolution}x{resolution}")
    noise, emb = _shape(shapes, "unet.emb_noise.weight")[::-1]
    width = math.gcd(*widths.values(), noise, emb)
    attention = {int(m[2]) for m, _ in blocks if m[1] == "dec" and m[3] == "block0" and m[4] == ".attn_qkv"}
    mult = tuple(widths[level] // max(width, 1) for level in levels)
    found: dict[str, Any] = {
        "img_resolution": resolution,
        "img_channels": channels - 1,
        "label_dim": _shape(shapes, "unet.emb_label.weight")[1] if "unet.emb_label.weight" in shapes else 0,
        "logvar_channels": _shape(shapes, "logvar_linear.weight")[1],
        "model_channels": width,
        "channel_mult": mult,
        "channel_mult_noise": None if noise == widths[resolution] else noise // max(width, 1),
        "channel_mult_emb": None if emb == max(widths.values()) else emb // max(width, 1),
        "num_blocks": sum(m[1] == "enc" and int(m[2]) == resolution and m[4] == ".conv_res0" for m, _ in blocks),
        "attn_resolutions": tuple(level for level in levels if level in attention),
    }
    return found


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if len(shapes.get(name, ())) != 2:
        raise InferenceError(f"has no {name} of two axes")
    return shapes[name]


def assumptions(config: EDM2Config, said: Mapping[str, Any]) -> tuple[str, ...]:
    """What a configuration has though nobody said it. said: arguments that somebody did say."""
    return tuple(f"{name}={getattr(config, name)}" for name in SILENT if name not in said)


def warning(name: str, assumed: Sequence[str] | None) -> str | None:
    """One line for a network of which something is assumed. name: of its file."""
    if not assumed:
        return None
    return (
        f"{name}: does not say how its network was constructed. Assumed: {', '.join(assumed)}; --config-from names a "
        "file that says it"
    )
