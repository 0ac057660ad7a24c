"""NVIDIA's published networks: the presets of NVlabs' generate_images.py, and every file by its name.

FID and FD-DINOv2 are those of the papers (arXiv 2312.02696 and 2406.02507), as NVlabs lists them beside the presets.
"""

import difflib
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from jax_edm2.config import EDM2Config, expected_tree

from .errors import ConverterError

ROOT = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions"
RAW_ROOT = "https://nvlabs-fi-cdn.nvidia.com/edm2/raw-snapshots"  # a folder for each training run
RAW_STDS = ("0.050", "0.100")  # EMA lengths of raw snapshots

FILE_NAME = re.compile(
    r"(?P<run>edm2-img(?:512|64)-(?:xs|s|m|l|xl|xxl)(?:-uncond)?)-(?P<kimg>\d{7,8})-(?P<std>\d\.\d{3})(?:\.pkl)?"
)


RAW_INTERVAL = 32 * 2**20  # images between published raw snapshots
RAW_LENGTHS = {  # of training runs, in millions (2^20) of images (arXiv 2312.02696, Tables 2 and 6)
    **{f"edm2-img512-{size}": 2048 for size in ("xs", "s", "m", "xs-uncond", "s-uncond")},
    "edm2-img512-l": 1792, "edm2-img512-xl": 1280, "edm2-img512-xxl": 896,
    "edm2-img64-xs": 1024, "edm2-img64-s": 1024, "edm2-img64-m": 2048, "edm2-img64-l": 1024, "edm2-img64-xl": 640,
}  # fmt: skip


MODEL_CHANNELS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


class PresetError(ConverterError):
    """A name that is no preset and no published network's."""


@dataclass(frozen=True)
class Preset:
    """A network, or one guided by another: D = D_guide + guidance (D_net - D_guide)."""

    name: str
    net: str  # file name without .pkl
    guide: str | None = None
    guidance: float = 1.0
    fid: float | None = None
    fd_dinov2: float | None = None


# Preset, network, guiding network, guidance, FID, FD-DINOv2; every name begins with edm2-.
_TABLE = """
img512-xs-fid               img512-xs-2147483-0.135        -                               1     3.53  -
img512-xs-dino              img512-xs-2147483-0.200        -                               1     -     103.39
img512-s-fid                img512-s-2147483-0.130         -                               1     2.56  -
img512-s-dino               img512-s-2147483-0.190         -                               1     -     68.64
img512-m-fid                img512-m-2147483-0.100         -                               1     2.25  -
img512-m-dino               img512-m-2147483-0.155         -                               1     -     58.44
img512-l-fid                img512-l-1879048-0.085         -                               1     2.06  -
img512-l-dino               img512-l-1879048-0.155         -                               1     -     52.25
img512-xl-fid               img512-xl-1342177-0.085        -                               1     1.96  -
img512-xl-dino              img512-xl-1342177-0.155        -                               1     -     45.96
img512-xxl-fid              img512-xxl-0939524-0.070       -                               1     1.91  -
img512-xxl-dino             img512-xxl-0939524-0.150       -                               1     -     42.84
img64-s-fid                 img64-s-1073741-0.075          -                               1     1.58  -
img64-m-fid                 img64-m-2147483-0.060          -                               1     1.43  -
img64-l-fid                 img64-l-1073741-0.040          -                               1     1.33  -
img64-xl-fid                img64-xl-0671088-0.040         -                               1     1.33  -
img512-xs-guid-fid          img512-xs-2147483-0.045        img512-xs-uncond-2147483-0.045  1.4   2.91  -
img512-xs-guid-dino         img512-xs-2147483-0.150        img512-xs-uncond-2147483-0.150  1.7   -     79.94
img512-s-guid-fid           img512-s-2147483-0.025         img512-xs-uncond-2147483-0.025  1.4   2.23  -
img512-s-guid-dino          img512-s-2147483-0.085         img512-xs-uncond-2147483-0.085  1.9   -     52.32
img512-m-guid-fid           img512-m-2147483-0.030         img512-xs-uncond-2147483-0.030  1.2   2.01  -
img512-m-guid-dino          img512-m-2147483-0.015         img512-xs-uncond-2147483-0.015  2     -     41.98
img512-l-guid-fid           img512-l-1879048-0.015         img512-xs-uncond-2147483-0.015  1.2   1.88  -
img512-l-guid-dino          img512-l-1879048-0.035         img512-xs-uncond-2147483-0.035  1.7   -     38.20
img512-xl-guid-fid          img512-xl-1342177-0.020        img512-xs-uncond-2147483-0.020  1.2   1.85  -
img512-xl-guid-dino         img512-xl-1342177-0.030        img512-xs-uncond-2147483-0.030  1.7   -     35.67
img512-xxl-guid-fid         img512-xxl-0939524-0.015       img512-xs-uncond-2147483-0.015  1.2   1.81  -
img512-xxl-guid-dino        img512-xxl-0939524-0.015       img512-xs-uncond-2147483-0.015  1.7   -     33.09
img512-s-autog-fid          img512-s-2147483-0.070         img512-xs-0134217-0.125         2.1   1.34  -
img512-s-autog-dino         img512-s-2147483-0.120         img512-xs-0134217-0.165         2.45  -     36.67
img512-xxl-autog-fid        img512-xxl-0939524-0.075       img512-m-0268435-0.155          2.05  1.25  -
img512-xxl-autog-dino       img512-xxl-0939524-0.130       img512-m-0268435-0.205          2.3   -     24.18
img512-s-uncond-autog-fid   img512-s-uncond-2147483-0.070  img512-xs-uncond-0134217-0.110  2.85  3.86  -
img512-s-uncond-autog-dino  img512-s-uncond-2147483-0.090  img512-xs-uncond-0134217-0.125  2.9   -     90.39
img64-s-autog-fid           img64-s-1073741-0.045          img64-xs-0134217-0.110          1.7   1.01  -
img64-s-autog-dino          img64-s-1073741-0.105          img64-xs-0134217-0.175          2.2   -     31.85
"""


def _preset(line: str) -> Preset:
    net, guide = (None if name == "-" else f"edm2-{name}" for name in line.split()[1:3])
    guidance, fid, fd_dinov2 = (None if figure == "-" else float(figure) for figure in line.split()[3:])
    return Preset(f"edm2-{line.split()[0]}", net or "", guide, guidance or 1.0, fid, fd_dinov2)


PRESETS = tuple(map(_preset, _TABLE.strip().splitlines()))

# A size without a suffix is the snapshot with the best FID.
ALIASES = {p.name.removesuffix("-fid"): p for p in PRESETS if p.name.endswith("-fid") and p.guide is None}
NETWORKS = tuple(sorted({name for p in PRESETS for name in (p.net, p.guide) if name}))


def find(name: str) -> Preset:
    """The preset of a name: of NVlabs' list, a size (edm2-img512-s), or a published file. Raises: PresetError."""
    for preset in PRESETS:
        if preset.name == name:
            return preset
    if name in ALIASES:
        return ALIASES[name]
    if FILE_NAME.fullmatch(name):
        return Preset(name, name.removesuffix(".pkl"))
    known = [preset.name for preset in PRESETS] + [*ALIASES, *NETWORKS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "edm2-convert --list-presets shows all"
    raise PresetError(f"there is no preset {name!a:.100}; {hint}")


def raw_snapshots(run: str, most_kimg: int | None = None) -> list[str]:
    """File names of a published training run's raw snapshots, up to a time. Raises: PresetError."""
    if run not in RAW_LENGTHS:
        raise PresetError(f"there are no raw snapshots of a run {run!a:.100}; there are of {', '.join(RAW_LENGTHS)}")
    times = [i * RAW_INTERVAL // 1000 for i in range(1, RAW_LENGTHS[run] * 2**20 // RAW_INTERVAL + 1)]
    return [f"{run}-{t:07d}-{std}" for t in times if most_kimg is None or t <= most_kimg for std in RAW_STDS]


def _match(network: str) -> re.Match:
    if not (match := FILE_NAME.fullmatch(network)):
        raise PresetError(f"{network!a:.100} is no published network's file name")
    return match


def config(network: str) -> EDM2Config:
    """The architecture of a published network, by its file name. Raises: PresetError."""
    _, data, size, *uncond = _match(network)["run"].split("-")
    return EDM2Config(
        img_resolution=64,
        img_channels=4 if data == "img512" else 3,
        label_dim=0 if uncond else 1000,
        model_channels=MODEL_CHANNELS[size],
        dropout=0.1 if MODEL_CHANNELS[size] >= MODEL_CHANNELS["m"] else 0.0,
    )


def tensor_bytes(network: str) -> int:
    """What a published network's tensors take, in float16; its file has some 200 kB more. Raises: PresetError."""
    return 2 * sum(math.prod(shape) for shape in expected_tree(config(network)).values())


def url(network: str) -> str:
    """Where a published network lies: its file name with or without .pkl. Raises: PresetError."""
    network = network.removesuffix(".pkl")
    match = _match(network)
    if network not in NETWORKS and match["std"] in RAW_STDS:
        return raw_url(network)
    return f"{ROOT}/{network}.pkl"


def raw_url(network: str) -> str:
    """Where a raw snapshot of a published run lies, likewise."""
    network = network.removesuffix(".pkl")
    return f"{RAW_ROOT}/{_match(network)['run']}/{network}.pkl"


def catalog() -> dict[str, Any]:
    """All presets, each with its alias, and its files' URLs and tensors' bytes; and where every network lies."""
    aliases = {preset.name: alias for alias, preset in ALIASES.items()}
    rows = [
        {
            **asdict(preset),
            "alias": aliases.get(preset.name),
            "bytes": sum(tensor_bytes(name) for name in (preset.net, preset.guide) if name),
            "urls": [url(name) for name in (preset.net, preset.guide) if name],
        }
        for preset in PRESETS
    ]
    return {"presets": rows, "networks": {name: url(name) for name in NETWORKS}}
