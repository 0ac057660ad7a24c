"""edm2-verify: does the JAX network compute what the PyTorch network of a snapshot computes?"""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import click

from jax_edm2 import __version__
from jax_edm2.strict_json import dumps

from .. import inference, presets
from ..convert import describe
from ..opening import is_training_state, open_side
from ..snapshot import Snapshot, read_snapshot
from ..sources import Fetching, locate
from ..verify import oracle_process
from ..verify.cases import (
    CHECKS,
    FEWEST_STEPS,
    FEWEST_UPDATES,
    MOST_BATCH,
    MOST_SEEDS,
    MOST_STEPS,
    MOST_UPDATES,
    SIGMAS,
    Plan,
)
from ..verify.compiling.estimate import usual_programs
from ..verify.compiling.job import PROGRAMS, Job
from ..verify.golden.check import FOLDER
from ..verify.port import import_port
from ..verify.precision import PRECISIONS
from ..verify.request import STEPS, FromSnapshot, FromTruth, Request, plan_of, torch_device, usual_steps
from ..verify.run import verify
from ..verify.source import Source
from ..weights import Weights
from .lists import Names, Numbers
from .options import SETTINGS, device_option, source_options, state_options
from .paths import BroughtPath, LocalPath, StoredPath
from .run import NOTE, run, say
from .seeds import Seeds
from .verify_others import compile_for_target, hold_to_goldens, start_jax
from .verify_output import command_line, show, stages
from .verify_usage import check_emulation, check_golden, check_usage, checks_of_a_port, given_to

EPILOG = """\b
Examples:
  edm2-verify golden/digits.pkl
  edm2-verify golden/digits.pkl --checkpoint digits.safetensors \\
      --report runs/report
  edm2-verify --preset edm2-img512-xs
  edm2-verify golden/digits.pkl --candidate my_port:denoise
  edm2-verify golden/digits.pkl --checks throughput --batch 64
  edm2-verify golden/digits.pkl --show-source
  edm2-verify golden/digits.pkl --reference embedded --trust-embedded-code
  edm2-verify --golden
\b
Two machines, PyTorch on one and JAX on the other:
  edm2-verify golden/digits.pkl --save-truth digits-truth.npz
  edm2-verify --checkpoint digits.safetensors --truth digits-truth.npz \\
      --device tpu

\b
For an accelerator that is not here (an estimate; nothing is fetched):
  edm2-verify --preset edm2-img512-xs --compile-for gpu:h100 --batch 8 \\
      --precision bfloat16

Exit codes: 0 the networks agree, 1 they disagree (or do not compile, or fit), 2 wrong usage or an input that is
missing, broken or refused, 3 inconclusive (a precision switch did not take effect, the reference is not repeatable or
not finite), 130 interrupted.
"""
OURS = "ours"  # goldens


def _are_sigmas(numbers: tuple[float, ...]) -> bool:
    try:
        Plan(sigmas=numbers).check()
    except ValueError:
        return False
    return True


@click.command(name="edm2-verify", epilog=EPILOG, context_settings=SETTINGS)
@click.argument("snapshot", required=False)
@source_options
@click.option(
    "--checkpoint", type=BroughtPath(network=True), help="What JAX loads.  [default: converts SNAPSHOT in memory]"
)
@click.option(
    "--candidate",
    metavar="MODULE:FUNCTION",
    help="Judge your own port: denoise(x, sigma, labels) -> D or (D, logvar), in JAX. The module, which is looked for "
    "here first, is run.",
)
@state_options
@device_option("Of JAX. PyTorch uses CUDA beside a GPU, else the CPU; the truth is always computed on the CPU.")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS]),
    default="float32",
    show_default=True,
    help="float32 is the verdict on a conversion; the others are health checks. high and default are JAX's words for "
    "fewer products (TPU) or TF32 (GPU) in float32.",
)
@click.option(
    "--checks",
    type=Names(CHECKS),
    default=",".join(Plan().checks),
    show_default=True,
    help="And training (a few steps of the optimiser, in 48 bytes of memory for each parameter), derivative (of D by "
    "the noise; by default of a --candidate) and throughput; or all. Of the largest networks, gradients and training "
    "need all weights in memory at once.",
)
@click.option(
    "--seeds", type=Seeds(MOST_SEEDS), default="0", show_default=True, help="Of the inputs, a batch each: 0-3,7."
)
@click.option(
    "--sigmas",
    type=Numbers("list of noise levels above 0 such as 0.002,1,80", _are_sigmas),
    default=",".join(f"{sigma:g}" for sigma in SIGMAS),
    show_default=True,
    help="Noise levels, dealt to the images of a batch in turn.",
)
@click.option(
    "--batch", type=click.IntRange(1, MOST_BATCH), default=Plan().batch, show_default=True, help="Images at once."
)
@click.option(
    "--steps",
    type=click.IntRange(FEWEST_STEPS, MOST_STEPS),
    help="Of the Heun trajectory.  [default: 32; 10 for networks from S up on a CPU, which saves 5 minutes at S]",
)
@click.option(
    "--updates",
    type=click.IntRange(FEWEST_UPDATES, MOST_UPDATES),
    default=Plan().updates,
    show_default=True,
    help="Of the check training: steps of Adam, of 4 images each.",
)
@click.option(
    "--reference",
    type=click.Choice(["torch_ref", "embedded"]),
    default="torch_ref",
    show_default=True,
    help="PyTorch network: ours, or the one whose source the snapshot carries, which is then executed.",
)
@click.option(
    "--trust-embedded-code",
    is_flag=True,
    help="Allow --reference embedded to execute the snapshot's code. It is given an empty folder and next to no "
    "environment, but a process is no sandbox: it can read files and use the network as you can.",
)
@click.option("--show-source", is_flag=True, help="Print the source that this would execute, and execute nothing.")
@click.option("--save-truth", type=StoredPath(), help="Write what PyTorch computes to a file, and stop.")
@click.option("--truth", type=BroughtPath(), help="Use such a file, checked by the digests in it; needs no PyTorch.")
@click.option(
    "--golden",
    type=LocalPath(file_okay=False),
    metavar="[DIR]",
    is_flag=False,
    flag_value=OURS,
    help="Hold this machine to recorded truths, ours or DIR's, in 15 to 60 seconds; needs no PyTorch and no SNAPSHOT.",
)
@click.option(
    "--compile-for",
    metavar="TARGET",
    help="Compile for an accelerator that need not be here (tpu:v5e:2x2, gpu:h100), and estimate what that takes.",
)
@click.option(
    "--programs",
    type=Names(PROGRAMS),
    help="What --compile-for compiles: denoiser,sampler,decoder,training; or all.  [default: all but training]",
)
@click.option(
    "--emulate",
    type=click.Choice(["tpu", "gpu"]),
    help="Let JAX on the CPU multiply as that accelerator does in --precision: default, high, tf32, ...",
)
@click.option("--sweep", is_flag=True, help="Throughput for batches of 1, 2, 4, ... until memory ends.")
@click.option(
    "--report",
    type=LocalPath(file_okay=False),
    help="Folder for report.json, report.html and report.md.",
)
@click.option("--force", is_flag=True, help="Replace an existing --save-truth file.")
@click.option("--json", "json_", is_flag=True, help="Print report.json and nothing else.")
@click.version_option(__version__)
@click.pass_context
def edm2_verify(
    context, snapshot, checkpoint, candidate, weights, config_from, device, precision, checks, seeds, sigmas, batch,
    steps, updates, reference, trust_embedded_code, show_source, save_truth, preset, sha256, cache_dir, offline,
    timeout, truth, golden, sweep, compile_for, programs, emulate, report, force, json_,
):  # fmt: skip
    """Prove that JAX computes what PyTorch computes with the weights of SNAPSHOT (a .pkl file or its URL).

    SNAPSHOT and --checkpoint may each be any file of a network's: a snapshot, a training state, or a checkpoint.
    Compares parameters, every operation of the forward pass, gradients and one training step, and a sampling
    trajectory with PyTorch in float64, and judges JAX by PyTorch's own error in the same precision.
    """
    if golden is not None:
        check_golden(context)
        return hold_to_goldens(FOLDER if str(golden) == OURS else golden, device, report, json_)
    if candidate is not None:
        checks = checks_of_a_port(context, checks)
    fetching = Fetching(sha256, cache_dir, offline, timeout)
    if emulate is not None:
        check_emulation(context, device, checks)
        device = "cpu"
    if compile_for is not None:
        source, published = locate(snapshot, preset)
        if published is not None:  # shapes suffice: nothing is fetched
            config = presets.config(published.net)
        else:
            with open_side(fetching.bring(source), weights, config_from) as opened:
                config = opened.config
        job = Job(compile_for, config, batch, precision, programs or usual_programs(config), steps or STEPS)
        return compile_for_target(job, report, json_)
    if programs is not None:
        raise click.UsageError("--programs is for --compile-for")
    if show_source:
        with read_snapshot(fetching.bring(locate(snapshot, preset)[0])) as opened:
            _show_source(Source.of(opened), json_)
        return 0
    if sweep and "throughput" not in checks:
        checks = (*checks, "throughput") if given_to(context, "checks") else ("throughput",)
    location = locate(snapshot, preset)[0] if snapshot or preset else None
    check_usage(context, location, checks)
    path = fetching.bring(location) if location else None  # when everything else is known to be right
    files = [file for file in (path, checkpoint) if file is not None and file.exists()]
    if (weights or config_from) and not any(map(is_training_state, files)):
        raise click.UsageError("--weights and --config-from are for training states, and there is none")
    if path is not None:
        with open_side(path, weights, config_from) as opened:
            config = opened.config
            _about_source(opened, reference)
    request: Request
    if truth is not None:
        request = FromTruth(
            truth, checkpoint, path, device, sweep, weights=weights, config_from=config_from, emulate=emulate
        )
    else:
        assert path is not None
        of_torch = torch_device(device)
        plan = Plan(checks, seeds, sigmas, batch, steps or usual_steps(config, of_torch), updates, precision)
        request = FromSnapshot(
            path, plan, reference, checkpoint, device, of_torch, sweep,
            weights=weights, config_from=config_from, emulate=emulate,
        )  # fmt: skip
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
    if save_truth is not None and isinstance(request, FromSnapshot):
        size = oracle_process.save_truth(request, save_truth, overwrite=force)
        say(f"{save_truth}: {size / 1e6:.1f} MB; use it with --truth {save_truth}")
        return 0
    plan = plan_of(request)
    if truth is not None and plan.checks == ("throughput",):
        raise click.UsageError(f"{truth} has nothing to compare with: it was made with --checks throughput")
    start_jax(device, plan.precision)
    with stages() as stage, contextlib.ExitStack() as stack:
        if candidate is not None:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # what it prints is no part of the report
            request = replace(request, port=import_port(candidate))
        outcome = verify(request, stage)
    return _report(outcome, report, json_)


def _about_source(weights: Weights, reference: str):
    """Say what will be executed before it is, or that what the snapshot carries is not known and will not be."""
    if not isinstance(weights, Snapshot):
        if reference == "embedded":
            raise click.UsageError(f"{weights.path} carries no source of its network: leave --reference embedded out")
        if line := inference.warning(str(weights.path), describe(weights).assumed):  # by both sides alike
            say(f"edm2-verify: warning: {line}", err=True, style=NOTE)
        return
    source = Source.of(weights)
    if reference == "embedded":
        say(source.before_execution(), err=True)
    elif line := source.warning():
        say(f"edm2-verify: warning: {line}", err=True, style=NOTE)


def _show_source(source: Source, json_: bool):
    """Print the source inside a snapshot, all of it, such that a terminal acts on none of it."""
    if json_:
        click.echo(dumps(source.to_json()))
        return
    for line in source.lines():
        say(line)


def _report(outcome, folder: Path | None, json_: bool) -> int:
    from ..verify.report.files import write_report
    from ..verify.report.text import terminal, to_json

    record = to_json(outcome, command_line())
    if folder is not None:
        write_report(record, folder)
    show(record, terminal(record), json_, folder and folder / "report.html")
    return outcome.exit_code


def main():
    run(edm2_verify)


if __name__ == "__main__":
    main()
