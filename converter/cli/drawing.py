"""Options of commands that draw with a network: which it is, and how the sampler goes."""

from collections.abc import Callable
from typing import Any

import click

from jax_edm2.settings import SAMPLERS, Churn, Settings

from ..sources import Fetching
from .lists import Numbers
from .options import download_options, source_options

POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)
INTERVAL = Numbers("interval of noise levels such as 0.28,2.9", lambda numbers: len(numbers) == 2, "LO,HI")


def _recorded(name: str) -> str:
    """What is said of an option whose default is in a checkpoint's record."""
    return f"[default: the checkpoint's, else {getattr(Settings, name):g}]"


def _churn_option(name: str, kind: click.ParamType, what: str):
    default = f"{getattr(Churn, name):g}"
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, default=default, show_default=True, help=what)


_NETWORK_OPTIONS = (
    click.option("--net", metavar="PATH|URL", help="Network: a converted checkpoint, or a snapshot (.pkl) or its URL."),
    click.option("--gnet", metavar="PATH|URL", help="Guiding network.  [default: the preset's, or the checkpoint's]"),
    click.option("--guidance", type=float, help="Its strength; 1 is no guidance.  [default: likewise]"),
)
_SAMPLER_OPTIONS = (
    click.option("--guidance-interval", type=INTERVAL, help="Guide at these noise levels only: above LO, up to HI."),
    click.option(
        "--unconditional-guide",
        "unconditional",
        is_flag=True,
        help="Ask the guide without labels; without --gnet, the network guides itself (classifier-free guidance).",
    ),
    click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class label.  [default: random]"),
    click.option(
        "--batch",
        type=click.IntRange(1, 65536),
        default=32,
        show_default=True,
        help="Most pictures at once on a device.",
    ),
    click.option(
        "--steps",
        "num_steps",
        type=click.IntRange(1, 10_000),
        help=f"Sampling steps.  {_recorded('num_steps')}",
    ),
    click.option("--sigma-min", type=POSITIVE, help=f"Lowest noise level.  {_recorded('sigma_min')}"),
    click.option("--sigma-max", type=POSITIVE, help=f"Highest noise level.  {_recorded('sigma_max')}"),
    click.option("--rho", type=POSITIVE, help=f"Exponent of the noise levels.  {_recorded('rho')}"),
    _churn_option("S_churn", NOT_NEGATIVE, "Stochasticity."),
    _churn_option("S_min", NOT_NEGATIVE, "Its lowest level."),
    _churn_option("S_max", NOT_NEGATIVE, "Its highest level."),
    _churn_option("S_noise", click.FLOAT, "Inflation of its noise."),
    click.option(
        "--sampler",
        type=click.Choice(SAMPLERS),
        default=Settings.sampler,
        show_default=True,
        help="heun is NVlabs'. A step of rk4 takes twice its time, of the others half; ancestral and -sde add noise.",
    ),
    click.option(
        "--rng",
        type=click.Choice(["torch-cuda", "torch-cpu", "jax"]),
        default="torch-cuda",
        show_default=True,
        help="Whose random numbers; generate_images.py uses torch's on CUDA.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of activations. auto: on a GPU float16 where generate_images.py would; else float32, without TF32.",
    ),
    click.option(
        "--nvlabs-rounding",
        is_flag=True,
        help="Round gains to float16 as generate_images.py does, which changes the network's output by some 2e-4.",
    ),
    click.option(
        "--vae",
        metavar="PATH|URL",
        help="diffusers' folder or safetensors file.  [default: what the network names]",
    ),
    click.option(
        "--vae-batch",
        type=click.IntRange(1, 1024),
        default=4,
        show_default=True,
        help="Latents decoded at once on a device.",
    ),
)


def drawing_options(command: Callable) -> Callable:
    """Adds what `drawn_by` takes from a command's options."""
    for option in reversed((*_NETWORK_OPTIONS, *_SAMPLER_OPTIONS)):
        command = option(command)
    return source_options(command)


def sampler_options(command: Callable) -> Callable:
    """Likewise, of a command that finds its networks in another way."""
    for option in reversed(_SAMPLER_OPTIONS):
        command = option(command)
    return download_options(command)


def drawn_by(options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `DrawRequest`, taken out of a command's options."""
    churn = Churn(*(options.pop(name) for name in ("S_churn", "S_min", "S_max", "S_noise")))
    sha256 = options.pop("sha256", None)
    fetching = Fetching(sha256, *(options.pop(name) for name in ("cache_dir", "offline", "timeout")))
    same = (
        "preset", "net", "gnet", "guidance", "unconditional", "class_idx", "batch", "num_steps", "sigma_min",
        "sigma_max", "rho", "sampler", "rng", "precision", "nvlabs_rounding", "vae", "vae_batch",
    )  # fmt: skip
    found = {name: options.pop(name) for name in same if name in options}
    return {**found, "interval": options.pop("guidance_interval"), "churn": churn, "fetching": fetching}
