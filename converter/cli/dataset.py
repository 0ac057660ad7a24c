"""edm2-dataset: datasets to train with, made of pictures: NVlabs' dataset_tool.py."""

import contextlib
import re
from collections.abc import Callable, Iterator

import click

from jax_edm2 import __version__
from jax_edm2.strict_json import dumps

from ..dataset.transforms import TRANSFORMS
from ..progress import Advance
from ..sources import Fetching
from .options import SETTINGS, device_option, download_options
from .paths import BroughtPath, StoredPath
from .run import NOTE, run, say

EPILOG = """\b
Examples:
  edm2-dataset convert --source=imagenet/train --dest=img64.zip \\
      --resolution=64x64 --transform=center-crop-dhariwal
  edm2-dataset convert --source=imagenet/train --dest=img512.zip \\
      --resolution=512x512 --transform=center-crop-dhariwal
  edm2-dataset encode --source=img512.zip --dest=img512-sd.zip
  edm2-dataset decode --source=img512-sd.zip --dest=again.zip --max-images=16

Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted, 143 terminated;
what is not done leaves nothing.
"""


class Resolution(click.ParamType):
    """WxH, or W,H."""

    name = "WxH"

    def convert(self, value, param, ctx):
        match = re.fullmatch(r"([0-9]{1,9})[x,]([0-9]{1,9})", value)
        if match is None:
            self.fail(f"{value!r:.100} is no resolution such as 512x512", param, ctx)
        return int(match[1]), int(match[2])


def _decorator(*options: Callable) -> Callable:
    """Adds options to a command, in their order."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_places = _decorator(
    click.option("--source", type=BroughtPath(), required=True, help="Folder, with all in it; or a ZIP."),
    click.option(
        "--dest", type=StoredPath(), required=True,
        help="A ZIP if it ends in .zip, else a folder, empty or new.",
    ),
    click.option("--max-images", type=click.IntRange(min=1), help="Take so many of it.  [default: all]"),
)  # fmt: skip
_vae = _decorator(
    click.option(
        "--model-url", "--vae", "vae", metavar="NAME|PATH|URL", default="stabilityai/sd-vae-ft-mse", show_default=True,
        help="VAE: a name on Hugging Face, diffusers' folder, or a safetensors file.",
    ),
    device_option("All of that kind are used."),
    click.option(
        "--batch", type=click.IntRange(1, 65536), default=4, show_default=True, help="Images at once on a device."
    ),
)  # fmt: skip
_endings = _decorator(
    click.option("--force", is_flag=True, help="Replace a ZIP that is there."),
    click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else."),
)


@click.group(name="edm2-dataset", epilog=EPILOG, context_settings=SETTINGS, no_args_is_help=False)
@click.version_option(__version__)
def edm2_dataset():
    """Make datasets to train with: the commands and flags of NVlabs' dataset_tool.py, and the same files.

    A dataset is a folder or ZIP of pictures (uncompressed PNG) or latents (NPY), all of one size, and of dataset.json:
    {"labels": [["00000/img00000000.png", 6], ...]}.
    """


@edm2_dataset.command(context_settings=SETTINGS)
@_places
@click.option(
    "--transform", type=click.Choice(TRANSFORMS),
    help="How to crop; center-crop-dhariwal is what ImageNet's papers do.  [default: scale the whole picture]",
)  # fmt: skip
@click.option("--resolution", metavar="WxH", type=Resolution(), help="Of the pictures.  [default: as they are]")
@download_options
@_endings
def convert(source, dest, max_images, transform, resolution, force, json_, **_):
    """Crop and scale pictures to squares of one size.

    Classes are those of the source's dataset.json. Without, those of a folder are the folders in it, in the order of
    their names.
    """
    from ..dataset.convert import ConvertRequest, convert

    request = ConvertRequest(source, dest, transform, resolution, max_images=max_images, force=force)
    _show(convert(request, warn=_warn, progress=_bar), json_)


@edm2_dataset.command(context_settings=SETTINGS)
@_places
@_vae
@download_options
@_endings
def encode(source, dest, max_images, vae, device, batch, cache_dir, offline, timeout, force, json_):
    """Encode pictures as a VAE's latents.

    They are means and standard deviations, from which training draws.
    """
    from ..dataset.latents import EncodeRequest, encode
    from ..devices import start

    request = EncodeRequest(
        source, dest, vae, max_images=max_images, batch=batch, force=force,
        fetching=Fetching(None, cache_dir, offline, timeout),
    )  # fmt: skip
    start(device)
    _show(encode(request, warn=_warn, progress=_bar), json_)


@edm2_dataset.command(context_settings=SETTINGS)
@_places
@_vae
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
    help="Of the noise: latents are drawn from their means and standard deviations.",
)  # fmt: skip
@download_options
@_endings
def decode(source, dest, max_images, vae, device, batch, seed, cache_dir, offline, timeout, force, json_):
    """Decode a VAE's latents to pictures."""
    from ..dataset.latents import DecodeRequest, decode
    from ..devices import start

    request = DecodeRequest(
        source, dest, vae, max_images=max_images, batch=batch, seed=seed, force=force,
        fetching=Fetching(None, cache_dir, offline, timeout),
    )  # fmt: skip
    start(device)
    _show(decode(request, warn=_warn, progress=_bar), json_)


def _show(report, json_: bool):
    if json_:
        click.echo(dumps(report.to_json()))
        return
    size = " x ".join(map(str, report.shape))
    classes = f"of {report.classes} classes" if report.classes else "without labels"
    skipped = f", {report.skipped} too small" if report.skipped else ""
    say(f"{report.dest}: {report.images} images of {size}, {classes}{skipped}, {report.seconds:.1f} s")


def _warn(line: str):
    say(f"edm2-dataset: warning: {line}", err=True, style=NOTE)


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Advance]:
    """Whoever ends it learns that nothing is left."""
    from ..bars import Bar

    done = 0
    try:
        with Bar(desc=name, total=total, unit="images") as bar:

            def advance(count: int):
                nonlocal done
                done += count
                bar.update(count)

            yield advance
    except (KeyboardInterrupt, SystemExit):
        say(f"{name}: is not written; {done} of {total} images were done", err=True)
        raise


def main():
    run(edm2_dataset)


if __name__ == "__main__":
    main()
