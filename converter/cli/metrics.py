"""edm2-metrics: FID and FD-DINOv2 of pictures, of a network, and of averages of every length."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from jax_edm2 import __version__, strict_json

from ..devices import start
from ..drawing_request import DrawRequest
from ..errors import ConverterError
from ..metrics.request import (
    METRICS,
    PUBLISHED,
    CalcRequest,
    Detection,
    GenRequest,
    RefRequest,
    Stopped,
    SweepRequest,
)
from ..progress import Advance
from ..sources import Fetching
from .cluster import cluster_of, cluster_options
from .drawing import drawing_options, drawn_by, sampler_options
from .lists import Numbers, Words
from .options import SETTINGS, device_option, download_options
from .paths import BroughtPath, LocalPath, StoredPath
from .run import NOTE, TERMINATED, run, say
from .stds import Stds
from .stopping import Asked

if TYPE_CHECKING:
    from ..metrics.measuring import Watch
    from ..metrics.run import Report

NAME = "edm2-metrics"
EPILOG = """\b
Examples:
  edm2-metrics ref --data=datasets/my-dataset.zip --dest=my-dataset.pkl
  edm2-metrics calc --images=out --ref=my-dataset.pkl --num=10000
\b
Of a network, without saving any images; the least of three times 50,000:
  edm2-metrics gen --net=edm2-img512-s.safetensors --repeats=3 \\
      --ref=https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl
\b
Of a training's averages of every length, each with two guidance weights:
  edm2-metrics sweep --indir=raw-snapshots/my-run --outdir=sweep \\
      --outstd=0.050,0.075,...,0.200 --gnet=guide.safetensors \\
      --guidance=1,1.5 --ref=my-dataset.pkl

Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted, 143 terminated; with
--resume, the same command goes on from there.
"""

_images = BroughtPath()


def _ref_option(command: Callable) -> Callable:
    return click.option("--ref", metavar="PKL|NPZ|URL", required=True, help="Dataset reference statistics.")(command)


_num_option = click.option(
    "--num", type=click.IntRange(min=2), default=PUBLISHED, show_default=True, help="Number of images."
)


def _repeats_option(command: Callable) -> Callable:
    return click.option(
        "--repeats", type=click.IntRange(1, 1000), default=1, show_default=True,
        help="How often, each time with the seeds that follow; the least counts.",
    )(command)  # fmt: skip


def _detection_options(batch: str) -> Callable:
    """Adds what `_detection` takes. batch: the name of the option for the detectors' batch."""

    def add(command: Callable) -> Callable:
        for option in reversed(
            (
                click.option("--metrics", type=Words(), default=",".join(METRICS), show_default=True, help="Which."),
                click.option(batch, "detector_batch", type=click.IntRange(1, 65536), default=64, show_default=True,
                             help="Most images at once on a device, in the detectors."),
                click.option("--inception", metavar="PATH|URL",
                             help="Weights for fid: NVlabs' .pkl or .pt, pytorch-fid's .pth.  [default: the last]"),
                click.option("--dinov2", metavar="PATH|URL",
                             help="Weights for fd_dinov2: DINOv2's .pth.  [default: the published ViT-L/14]"),
                click.option("--resume", type=LocalPath(file_okay=False), metavar="DIR",
                             help="Keep progress in this folder, and go on from what is there."),
                click.option("--save-every", type=click.FloatRange(min=0), default=60, show_default=True,
                             metavar="SECONDS", help="How often that is."),
            )
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def _detection(options: dict[str, Any], fetching: Fetching) -> Detection:
    return Detection(
        batch=options.pop("detector_batch"), fetching=fetching,
        **{name: options.pop(name) for name in ("metrics", "inception", "dinov2", "resume", "save_every")},
    )  # fmt: skip


def _machine_options(command: Callable) -> Callable:
    for option in (
        click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else."),
        cluster_options,
        device_option("All of that kind are used."),
    ):
        command = option(command)
    return command


def _begin(options: dict[str, Any]):
    """Bring JAX up, as the options say."""
    names = ("distributed", "coordinator", "num_processes", "process_id")
    start(options.pop("device"), cluster_of(*(options.pop(name) for name in names)))


def _downloads(options: dict[str, Any]) -> Fetching:
    return Fetching(None, *(options.pop(name) for name in ("cache_dir", "offline", "timeout")))


def _without_sha256(fetching: Fetching) -> Fetching:
    """What is demanded of the network's file is not of the detectors'."""
    return dataclasses.replace(fetching, sha256=None)


@click.group(name=NAME, epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__)
def edm2_metrics():
    """FID and FD-DINOv2: the flags of NVlabs' calculate_metrics.py, computed in JAX."""


@edm2_metrics.command(context_settings=SETTINGS)
@click.option("--images", type=_images, metavar="ZIP|DIR", required=True, help="The images.")
@_ref_option
@_num_option
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for selecting the images.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that read images.")
@_detection_options("--batch")
@download_options
@_machine_options
def calc(images, ref, num, seed, workers, json_, **options):
    """Metrics of a set of images."""
    from ..metrics import run as library

    detection = _detection(options, _downloads(options))
    _begin(options)
    request = CalcRequest(images=images, ref=ref, num=num, seed=seed, workers=workers, detection=detection)
    _show(_watched(lambda watch: library.calc(request, watch), detection), json_)


@edm2_metrics.command(context_settings=SETTINGS)
@_ref_option
@_num_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the first image.")
@_repeats_option
@drawing_options
@_detection_options("--detector-batch")
@_machine_options
def gen(ref, num, seed, repeats, json_, **options):
    """Metrics of a network's samples, without saving any."""
    from ..metrics import run as library

    draw = DrawRequest(**drawn_by(options))
    detection = _detection(
        options, Fetching(None, draw.fetching.cache_dir, draw.fetching.offline, draw.fetching.timeout)
    )
    _begin(options)
    request = GenRequest(draw=draw, ref=ref, num=num, seed=seed, repeats=repeats, detection=detection)
    _show(_watched(lambda watch: library.gen(request, watch), detection), json_)


@edm2_metrics.command(context_settings=SETTINGS)
@click.option("--data", type=_images, metavar="ZIP|DIR", required=True, help="The dataset.")
@click.option("--dest", type=StoredPath(dir_okay=False), metavar="PKL", required=True,
              help="Destination file.")  # fmt: skip
@click.option("--num", type=click.IntRange(min=2), help="Number of images.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for selecting them.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that read images.")
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
@_detection_options("--batch")
@download_options
@_machine_options
def ref(data, dest, num, seed, workers, force, json_, **options):
    """Reference statistics of a dataset, for calc and gen."""
    from ..metrics import run as library

    detection = _detection(options, _downloads(options))
    _begin(options)
    request = RefRequest(
        data=data, dest=dest, num=num, seed=seed, workers=workers, force=force, detection=detection
    )  # fmt: skip
    found = _watched(lambda watch: library.reference(request, watch), detection)
    if _first() and json_:
        click.echo(strict_json.dumps(found))
    elif _first():
        say(f"{dest}: of {found['num']:,} images, {_rate(found['num'], found['seconds'])}")


@edm2_metrics.command(context_settings=SETTINGS)
@click.option(
    "--indir",
    type=StoredPath(),
    required=True,
    help="Folder of snapshots, -KIMG-STD.pkl, also a store's; or a published run's name.",
)
@click.option("--outkimg", type=click.IntRange(1), help="Their time.  [default: the last]")
@click.option(
    "--outstd", type=Stds(), required=True, help="Relative standard deviations: 0.05,0.1 or 0.050,0.075,...,0.200."
)
@click.option("--outdir", type=LocalPath(file_okay=False), required=True,
              help="Folder for averages, progress, results.json and sweep.png.")  # fmt: skip
@click.option("--gnet", metavar="PATH|URL", help="Guiding network.")
@click.option(
    "--guidance",
    type=Numbers("list of numbers such as 1,1.4,2"),
    default="1",
    show_default=True,
    help="Its weights; 1 is no guidance.",
)
@_ref_option
@_num_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the first image.")
@_repeats_option
@sampler_options
@_detection_options("--detector-batch")
@_machine_options
def sweep(indir, outkimg, outstd, outdir, gnet, guidance, ref, num, seed, repeats, json_, **options):
    """Metrics over EMA lengths and guidance weights, with a plot.

    The averages are made as edm2-phema makes them. What is done is kept in OUTDIR: the same command goes on from there.
    """
    from ..metrics import run as library

    draw = DrawRequest(gnet=gnet, **drawn_by(options))
    detection = _detection(options, _without_sha256(draw.fetching))
    _begin(options)
    request = SweepRequest(
        indir=indir, outdir=outdir, outstd=outstd, outkimg=outkimg, guidance=guidance, draw=draw, ref=ref, num=num,
        seed=seed, repeats=repeats, detection=detection,
    )  # fmt: skip
    found = _watched(lambda watch: library.sweep(request, watch), detection, keeps=True)
    if not _first():
        return
    if json_:
        click.echo(strict_json.dumps(found))
        return
    for row in found["results"]:
        values = ", ".join(f"{metric} {row[metric]['value']:.6g}" for metric in METRICS if metric in row)
        say(f"std {row['std']:.3f}, guidance {row['guidance']:g}, seed {row['seed']}: {values}")
    say(found["plot"])


def _watched(measure: "Callable[[Watch], Any]", detection: Detection, keeps: bool = False) -> Any:
    """What `measure` gives, told of how it goes on, and, where progress is kept, of Ctrl-C."""
    from jax_edm2.training.dataset import DatasetError

    from ..metrics.measuring import Watch

    try:
        if detection.resume is None and not keeps:
            return measure(Watch(_warn, _bar))
        with Asked(NAME, "ends after this batch, which is kept; Ctrl-C again ends it at once") as asked:
            return measure(Watch(_warn, _bar, asked))
    except DatasetError as error:
        raise ConverterError(str(error)) from None
    except Stopped as stopped:
        say(f"{NAME}: {stopped}; the same command goes on from there", err=True)
        if asked.signal == signal.SIGTERM:
            sys.exit(TERMINATED)
        raise KeyboardInterrupt from None


def _show(report: "Report", json_: bool):
    if not _first():
        return
    if json_:
        click.echo(strict_json.dumps(report.to_json()))
        return
    for result in report.results:
        for metric, score in result.scores.items():
            seed = result.pictures["seed"]
            rate = _rate(report.num, result.seconds)
            say(f"{metric} {score.value:.6g}, of {report.num:,} images, seed {seed}, {rate}")
    if len(report.results) > 1:
        for metric, value in report.best.items():
            say(f"{metric} {value:.6g} is the least of {len(report.results)}")


def _rate(count: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {count / max(seconds, 1e-9):,.1f} images/s"


def _first() -> bool:
    import jax

    return jax.process_index() == 0


def _warn(line: str):
    if _first():
        say(f"{NAME}: warning: {line}", err=True, style=NOTE)


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Advance]:
    from ..bars import Bar

    with Bar(desc=name, total=total, unit="images", silent=not _first()) as bar:
        yield bar.update


def main():
    run(edm2_metrics)


if __name__ == "__main__":
    main()
