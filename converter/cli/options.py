"""What all commands have in common: how options are spelt, and those that say which snapshot it is and where."""

import re
from collections.abc import Callable
from typing import Any

import click

from .. import presets
from ..downloads.watchdog import PERIOD, SPEED, TIMEOUT
from .paths import BroughtOrName, LocalPath

SETTINGS: dict[str, Any] = {  # of every click command
    "help_option_names": ["-h", "--help"],
    "max_content_width": 80,
    "token_normalize_func": lambda token: token.replace("_", "-"),  # NVlabs' tools spell --sigma_min, --S_churn
}
PRESETS = "A published network: see edm2-convert --list-presets."
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def _sha256(_context, _parameter, value: str | None) -> str | None:
    if value is not None and not _SHA256.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no sha256: 64 hexadecimal digits")
    return value


def _presets(_context, _parameter, begun: str) -> list[str]:
    names = [preset.name for preset in presets.PRESETS] + [*presets.ALIASES, *presets.NETWORKS]
    return sorted(name for name in names if name.startswith(begun))


class Device(click.Choice):
    """The kind of devices that JAX uses."""

    def __init__(self):
        super().__init__(["auto", "cpu", "gpu", "tpu"])

    def convert(self, value, param, ctx):
        return super().convert("gpu" if value in ("cuda", "rocm") else value, param, ctx)


def device_option(text: str) -> Callable:
    """--device."""
    return click.option("--device", type=Device(), default="auto", show_default=True, help=text)


def state_options(command: Callable) -> Callable:
    """Adds --weights and --config-from, which are about training states."""
    weights = click.option(
        "--weights", metavar="net|ema-STD", help="Which network of a training state (.pt, or a folder made of it)."
    )
    config_from = click.option(
        "--config-from",
        type=BroughtOrName(),
        metavar="FILE|NAME",
        help="What a training state's network is configured like.  [default: training_options.json beside it says, or "
        "the tensors' shapes do]",
    )
    return weights(config_from(command))


def source_options(command: Callable) -> Callable:
    """Adds --preset, --sha256, --cache-dir, --offline and --timeout to a command."""
    preset = click.option("--preset", metavar="NAME", shell_complete=_presets, help=PRESETS)
    sha256 = click.option("--sha256", metavar="HEX", callback=_sha256, help="What the snapshot's file must have.")
    return preset(sha256(download_options(command)))


def download_options(command: Callable) -> Callable:
    """Adds --cache-dir, --offline and --timeout to a command."""
    for option in reversed(
        (
            click.option(
                "--cache-dir",
                type=LocalPath(file_okay=False),
                is_eager=True,  # options that take URLs fetch by these
                help="Where downloads are kept.  [default: $DNNLIB_CACHE_DIR/downloads, else the user's cache folder]",
            ),
            click.option("--offline", is_flag=True, is_eager=True, help="Use only what has been downloaded already."),
            click.option(
                "--timeout",
                metavar="SECONDS",
                type=click.IntRange(1, 3600),
                is_eager=True,
                default=TIMEOUT,
                show_default=True,
                help="Longest silence of a server before a download is tried again. An answer that has not begun after "
                f"{PERIOD} times as long, or brings less than {SPEED:,} bytes a second over that, breaks off too.",
            ),
        )
    ):
        command = option(command)
    return command
