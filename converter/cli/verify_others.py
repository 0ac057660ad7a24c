"""What edm2-verify does beside verifying a network: goldens, and estimates of accelerators that are not here."""

from pathlib import Path

from ..devices import start
from ..verify.cases import Plan
from ..verify.compiling.estimate import estimate
from ..verify.compiling.job import Job
from ..verify.compiling.targets import Target
from ..verify.golden.check import find_goldens, hold_to
from ..verify.jax_side.xla_flags import set_xla_flags, xla_flags
from .run import say
from .verify_output import command_line, show, stages


def compile_for_target(job: Job, folder: Path | None, json_: bool) -> int:
    """Estimates of an accelerator: the exit code."""
    from ..verify.report import compiled

    Target.parse(job.target)  # before the folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with stages() as stage:
        found = estimate(job, stage)
    record = compiled.to_json(found, command_line())
    if folder is not None:
        compiled.write(record, found, folder)
    show(record, compiled.terminal(found), json_, folder and folder / "compile.html")
    return 0 if all(each.error is None and each.fits for each in found) else 1


def start_jax(device: str, precision: str):
    """Bring JAX up on the device asked for, with the flags that the precision needs."""
    unknown = set_xla_flags(xla_flags(precision, device))
    if unknown:
        say(f"edm2-verify: this XLA does not know {' '.join(unknown)}", err=True)
    start(device)


def hold_to_goldens(folder: Path, device: str, report: Path | None, json_: bool) -> int:
    """Hold this machine to goldens: the exit code."""
    from ..verify.golden.report import terminal, to_json, write

    paths = find_goldens(folder)
    start_jax(device, Plan().precision)
    with stages() as stage:
        found = hold_to(paths, stage)
    record = to_json(*found)
    if report is not None:
        write(record, report)
    show(record, terminal(*found), json_)
    return record["exit_code"]
