"""edm2-train: NVlabs' train_edm2.py in JAX, from noise, from a checkpoint or from where a training stands."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from jax_edm2 import __version__, strict_json
from jax_edm2.messages import brief
from jax_edm2.training.dataset import DatasetError
from jax_edm2.training.recipe import PRESETS

from ..devices import start
from ..errors import ConverterError
from ..sources import Fetching
from ..train.request import PRECISIONS, PRESET, SNAPSHOT_DTYPES, TrainRequest
from .cluster import cluster_of, cluster_options
from .options import SETTINGS, device_option, download_options
from .paths import BroughtOrName, BroughtPath, LocalPath
from .run import HINT, NOTE, TERMINATED, run, say
from .stds import Stds
from .stopping import Asked

if TYPE_CHECKING:
    from ..train.loop import Status, TrainReport
    from ..train.plan import Plan

EPILOG = """\b
Examples:
  edm2-train --outdir=runs/0 --data=img512-sd.zip --preset=edm2-img512-xs \\
      --batch-gpu=32
  edm2-train --outdir=runs/1 --data=flowers.zip --init=edm2-img512-s.pkl \\
      --batch=256 --lr=0.002 --rampup=0 --duration=4Mi
  edm2-train --outdir=runs/2 --data=img512-sd.zip --preset=edm2-img512-xs \\
      --resume=training-state-0134217.pt
\b
The same command again goes on from the newest checkpoint in --outdir. Ctrl-C
and SIGTERM end a training after the step that it is in, with a checkpoint;
a second Ctrl-C ends it at once.
\b
Two processes, each with all of its devices (on Slurm and TPU pods,
--distributed alone); --outdir is on a disk that both see:
  edm2-train ... --coordinator=host0:1234 --num-processes=2 --process-id=0

Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted, 143 terminated.
"""

NAME = "edm2-train"
POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)
SUFFIXES = {"Ki": 10, "Mi": 20, "Gi": 30}


class Images(click.ParamType):
    """A number of images: 131072 or 128Ki."""

    name = "NIMG"

    def __init__(self, least: int = 0):
        self._least = least

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        digits, shift = (value[:-2], SUFFIXES[value[-2:]]) if value[-2:] in SUFFIXES else (value, 0)
        if not (digits.isascii() and digits.isdigit() and len(digits) < 13):
            self.fail(f"{value!r:.60} is no number of images such as 131072, 128Ki, 8Mi or 1Gi", param, ctx)
        if not self._least <= (number := int(digits) << shift) < 2**32:
            self.fail(f"{value!r:.60} is not from {self._least} to 4Gi - 1", param, ctx)
        return number


def _network(_context, _parameter, values: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        try:
            found[name.replace("-", "_")] = strict_json.loads(value)
        except strict_json.JSONError:
            equals = ""
        if not equals:
            raise click.BadParameter(f"{brief(text)} is no NAME=VALUE such as num_blocks=2 or channel_mult=[1,2,2]")
    return found


@click.command(name=NAME, epilog=EPILOG, context_settings=SETTINGS)
@click.option("--outdir", type=LocalPath(file_okay=False), required=True, help="Where to save the results.")
@click.option(
    "--data", type=BroughtPath(), metavar="ZIP|DIR", required=True, help="Dataset, as dataset_tool.py makes it."
)
@click.option("--cond", type=click.BOOL, default=True, show_default=True, help="Train with its labels.")
@click.option("--preset", type=click.Choice(PRESETS), metavar="NAME", default=PRESET, show_default=True,
              help="Whose recipe, and whose network, unless one is given.")  # fmt: skip
@click.option("--init", type=BroughtPath(network=True), metavar="FILE",
              help="Begin with these weights: snapshot, checkpoint or .pt.")  # fmt: skip
@click.option("--weights", metavar="net|ema-STD", help="Which network of --init, if that is a training state.")
@click.option("--resume", type=BroughtPath(network=True), metavar="FILE",
              help="Go on from a training state, NVlabs' .pt or our own.")  # fmt: skip
@click.option(
    "--config-from",
    type=BroughtOrName(),
    metavar="FILE|NAME",
    help="Begin anew, with the network of another file or preset.",
)
@click.option("--network", metavar="NAME=VALUE", multiple=True, callback=_network,
              help="Of the network's configuration, such as num_blocks=2.")  # fmt: skip
@click.option("--duration", type=Images(1), help="Training duration.  [default: the preset's]")
@click.option("--batch", type=Images(1), help="Total batch size.  [default: 2048]")
@click.option("--channels", type=click.IntRange(min=1), help="Channel multiplier.  [default: the preset's]")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), help="Its probability.  [default: likewise]")
@click.option("--P_mean", "P_mean", type=float, help="Noise level mean.  [default: the preset's, or --init's]")
@click.option("--P_std", "P_std", type=POSITIVE, help="Noise level standard deviation.  [default: likewise]")
@click.option("--lr", type=POSITIVE, help="Learning rate max. (alpha_ref).  [default: the preset's]")
@click.option("--decay", type=NOT_NEGATIVE, metavar="BATCHES", help="Learning rate decay (t_ref).  [default: likewise]")
@click.option("--rampup", type=Images(), help="Over which the learning rate rises from 0.  [default: 10000000]")
@click.option("--stds", type=Stds(), default="0.05,0.1", show_default=True, help="Of power-function averages (EMA).")
@click.option("--batch-gpu", type=Images(), default="0", show_default=True,
              help="Most images at once on a device; gradients add up. 0: no limit.")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
              help="Of activations. auto: float32 on CPUs, bfloat16 on TPUs, float16 on GPUs.")  # fmt: skip
@click.option("--fp16", type=click.BOOL, help="False: auto is float32 everywhere.  [default: True, or --init's]")
@click.option("--ls", type=POSITIVE, default=1.0, show_default=True, help="Loss scaling.")
@click.option("--remat", is_flag=True, help="Compute activations again for their derivatives: less memory.")
@click.option("--fsdp", is_flag=True, help="Split parameters, moments and averages over the devices.")
@click.option(
    "--bench", type=click.BOOL, help="NVlabs' cuDNN benchmarking; XLA tunes by itself, and this does nothing."
)
@click.option("--status", type=Images(), default="128Ki", show_default=True, help="Interval of status lines.")
@click.option("--snapshot", type=Images(), default="8Mi", show_default=True, help="Interval of network snapshots.")
@click.option("--checkpoint", type=Images(), default="128Mi", show_default=True,
              help="Interval of training checkpoints. 0: at the end alone; of the others: never.")  # fmt: skip
@click.option("--keep", type=click.IntRange(0), default=0, show_default=True,
              help="Newest checkpoints to keep. 0: all.")  # fmt: skip
@click.option("--snapshot-dtype", type=click.Choice(SNAPSHOT_DTYPES), default="float16", show_default=True,
              help="Of snapshots' weights.")  # fmt: skip
@click.option("--pkl", is_flag=True, help="Write snapshots as .pkl, too, for NVlabs' tools.")
@click.option("--samples", type=click.IntRange(0, 400), default=64, show_default=True,
              help="Pictures in the grid of each snapshot; of latents there are none without --vae.")  # fmt: skip
@click.option("--vae", metavar="PATH|URL", help="diffusers' folder or safetensors file, for that grid.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files, too.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the training's options and needs, and exit.")
@click.option("--compile-for", metavar="TARGET",
              help="With --dry-run: compile the step for tpu:v5e:2x2, gpu:h100, ...")  # fmt: skip
@device_option("All of that kind are used.")
@download_options
@cluster_options
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_train(
    outdir, data, cond, preset, init, weights, resume, config_from, network, duration, batch, channels, dropout, P_mean,
    P_std, lr, decay, rampup, stds, batch_gpu, precision, fp16, ls, remat, fsdp, bench, status, snapshot, checkpoint,
    keep, snapshot_dtype, pkl, samples, vae, tensorboard, seed, dry_run, compile_for, device, cache_dir, offline,
    timeout, distributed, coordinator, num_processes, process_id, json_,
):  # fmt: skip
    """Train EDM2 networks by the recipe of "Analyzing and Improving the Training Dynamics of Diffusion Models".

    The flags are those of NVlabs' train_edm2.py, and more. DATA is a folder or ZIP of its dataset_tool.py.
    """
    del bench
    cluster = cluster_of(distributed, coordinator, num_processes, process_id)
    if compile_for is not None and not dry_run:
        raise click.UsageError("--compile-for goes with --dry-run")
    if vae is not None and not samples:
        raise click.UsageError("--vae is for the grid of samples, and --samples=0 wants none")
    request = TrainRequest(
        outdir, data, preset=preset, init=init, weights=weights, resume=resume, config_from=config_from,
        network=network, cond=cond, duration=duration, batch=batch, channels=channels, dropout=dropout, P_mean=P_mean,
        P_std=P_std, lr=lr, decay=decay, rampup=rampup, loss_scaling=ls, stds=stds, batch_gpu=batch_gpu, fp16=fp16,
        precision=precision, remat=remat, fsdp=fsdp, status=status, snapshot=snapshot, checkpoint=checkpoint,
        snapshot_dtype=snapshot_dtype, pkl=pkl, keep=keep, tensorboard=tensorboard, samples=samples, vae=vae, seed=seed,
        fetching=Fetching(None, cache_dir, offline, timeout),
    )  # fmt: skip
    start(device, cluster)
    try:
        if dry_run:
            return _dry_run(request, compile_for, json_)
        report, asked = _train(request, json_)
    except DatasetError as error:
        raise ConverterError(str(error)) from None
    first = _first()
    if json_ and first:
        click.echo(strict_json.dumps(report.to_json()))
    elif first:
        for line in _summary(report):
            say(line)
    if not report.finished and asked == signal.SIGINT:
        raise KeyboardInterrupt
    if not report.finished and asked == signal.SIGTERM:
        sys.exit(TERMINATED)
    return 0


def _first() -> bool:
    import jax

    return jax.process_index() == 0


def _train(request: TrainRequest, json_: bool) -> "tuple[TrainReport, int | None]":
    """What came of it, and the signal that ended it, if one did."""
    from ..train.loop import train

    answer = "ends after this step, with a checkpoint; Ctrl-C again ends it at once"
    with Asked(NAME, answer) as asked, _watched(request, json_) as (status, advance):
        report = train(request, warn=_warn, status=status, advance=advance, stop=asked, peak=_peak)
    return report, asked.signal


def _peak(precision: str) -> float | None:
    """Floating-point operations a second of one of the devices, if its datasheet is known."""
    import jax

    from ..verify.compiling.targets import device_of

    found = device_of(jax.devices()[0].device_kind)
    return None if found is None else found.peak(precision)


@contextlib.contextmanager
def _watched(request: TrainRequest, json_: bool) -> Iterator[tuple[Any, Any]]:
    """A bar on the terminal, and lines of figures above it."""
    from ..bars import Bar

    first, seen = _first(), 0
    with Bar(desc="training", unit="images", silent=not first) as bar:

        def status(now: "Status"):
            bar.total = now.duration
            if first and not json_:
                bar.clear()
                say(" ".join(_figures(now)))

        def advance(images: int):
            nonlocal seen
            bar.update(images - seen if seen else images - bar.n)
            seen = images

        yield status, advance


def _figures(now: "Status") -> Iterator[str]:
    yield f"kimg {now.images / 1e3:<9.1f}"
    yield f"loss {now.loss:<9.4f}"
    yield f"lr {now.rate:<9.2e}"
    yield f"time {_time(now.seconds):<12}"
    yield f"sec/kimg {now.seconds_per_kimg:<8.3f}"
    yield f"data {now.waited:<6.1%}"
    if now.memory is not None:
        yield f"mem {now.memory:<6.2f}"
    if now.share_of_peak is not None:
        yield f"peak {now.share_of_peak:.1%}"


def _time(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    days = f"{whole // 86400}d " if whole >= 86400 else ""
    return f"{days}{whole // 3600 % 24}h {whole // 60 % 60:02d}m"


def _summary(report: "TrainReport") -> Iterator[str]:
    if report.images == report.began:
        yield f"{report.outdir}: has seen {report.images / 1e3:,.1f} kimg already; --duration makes it longer"
        return
    end = "" if report.finished else ", not to its end"
    yield (
        f"{report.outdir}: trained from {report.began / 1e3:,.1f} to {report.images / 1e3:,.1f} kimg{end}, "
        f"{_time(report.seconds)} in all, loss {report.loss:.4f}"
    )
    if report.checkpoint is not None:
        yield f"checkpoint: {report.checkpoint}"
    if report.written:
        yield f"snapshots: {len(report.written)}, the last {report.written[-1]}"


def _dry_run(request: TrainRequest, compile_for: str | None, json_: bool) -> int:
    from ..train.checkpoints import Checkpoints
    from ..train.estimate import needs
    from ..train.loop import plan_of
    from ..train.options import options_of

    plan = plan_of(request, _warn)
    found, options = needs(plan), options_of(plan)
    if json_:
        needed = {"devices": found.devices, "parts": found.parts, "parameters": found.parameters}
        text = {"options": options, **needed, "bytes": found.bytes, "flop": found.flop}
        click.echo(strict_json.dumps(text))
    else:
        for line in json.dumps(options, indent=2).splitlines():
            say(line)
        newest = Checkpoints(request.outdir, 0, _warn).found()
        say(f"begins with {newest[0] if newest else request.resume or request.init or 'a new network'}")
        say(f"{found.parameters:,} parameters; {found.flop / 1e12:,.3f} TFLOP a step, in {found.parts} parts")
        say(f"memory of each of {found.devices} devices, activations apart, GB:")
        for name, size in [*found.bytes.items(), ("in all", sum(found.bytes.values()))]:
            say(f"  {name:<15} {size / 1e9:10.3f}")
        say("nothing was trained, and nothing written", style=HINT)
    return _compile(plan, compile_for) if compile_for is not None else 0


def _compile(plan: "Plan", target: str) -> int:
    from ..verify.compiling.estimate import estimate
    from ..verify.compiling.job import TRAINING, Job
    from ..verify.compiling.targets import Target
    from ..verify.report import compiled

    precision, request = plan.dtype(target.partition(":")[0]), plan.request
    parts = plan.parts(Target.parse(target).chips)
    job = Job(
        target, plan.config, plan.recipe.batch_size, precision, (TRAINING,),
        parts=parts, remat=request.remat, fsdp=request.fsdp,
    )  # fmt: skip
    found = estimate(job)
    for line in compiled.terminal(found):
        say(line)
    return 0 if all(each.error is None and each.fits for each in found) else 1


def _warn(line: str):
    say(f"edm2-train: warning: {line}", err=True, style=NOTE)


def main():
    run(edm2_train)


if __name__ == "__main__":
    main()
