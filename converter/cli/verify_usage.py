"""Options of edm2-verify that do not go together: each is refused by one line, before anything is done."""

import importlib.util

import click
from click.core import ParameterSource

from ..sources import Location
from ..verify.cases import OF_ANY_DENOISER

WITH_GOLDEN = ("golden", "device", "report", "json_")
WITHOUT_CANDIDATE = ("checkpoint", "save_truth", "show_source", "compile_for", "sweep", "updates")
FROM_TRUTH = ("precision", "seeds", "sigmas", "batch", "steps", "updates", "checks", "reference")


def given_to(context, name) -> bool:
    return context.get_parameter_source(name) == ParameterSource.COMMANDLINE


def checks_of_a_port(context, checks: tuple[str, ...]) -> tuple[str, ...]:
    """The checks of --candidate. Raises: click.UsageError for what cannot be asked of it."""
    for name in WITHOUT_CANDIDATE:
        if given_to(context, name):
            raise click.UsageError(f"--candidate is what JAX computes: leave --{name.replace('_', '-')} out")
    if not given_to(context, "checks"):
        return OF_ANY_DENOISER
    if odd := [check for check in checks if check not in OF_ANY_DENOISER]:
        raise click.UsageError(
            f"of a --candidate, {', '.join(OF_ANY_DENOISER)} can be judged: leave {', '.join(odd)} out of --checks"
        )
    return checks


def check_usage(context, location: Location | None, checks: tuple[str, ...]):
    """Raises: click.UsageError for options that do not go together."""
    given = context.params
    if given["truth"] is None and importlib.util.find_spec("torch") is None:
        raise click.UsageError("PyTorch is not installed: pip install torch, or bring what it computes with --truth")
    if given["truth"] is not None and given["save_truth"] is not None:
        raise click.UsageError("--truth and --save-truth exclude each other")
    if given["save_truth"] is not None and checks == ("throughput",):
        raise click.UsageError("--save-truth keeps what PyTorch computes, and throughput computes nothing to keep")
    if location is None and given["truth"] is None:
        raise click.UsageError("give a SNAPSHOT (.pkl)")
    if location is None and given["checkpoint"] is None and given["candidate"] is None:
        raise click.UsageError("give a SNAPSHOT (.pkl), a --checkpoint or a --candidate beside --truth")
    if location is None and given_to(context, "checks") and "throughput" in checks:
        raise click.UsageError("throughput needs a SNAPSHOT (.pkl)")
    if given["truth"] is not None:
        for name in FROM_TRUTH:
            if given_to(context, name):
                raise click.UsageError(f"--{name} is fixed by the --truth file: leave it out")
    if given["reference"] == "embedded" and not given["trust_embedded_code"]:
        raise click.UsageError(
            "--reference embedded executes the Python source inside the snapshot; add --trust-embedded-code if you "
            "trust where the file came from"
        )


def check_golden(context):
    """Raises: click.UsageError for what does not go with --golden."""
    if found := [name for name in context.params if name not in WITH_GOLDEN and given_to(context, name)]:
        raise click.UsageError(f"--golden goes with --device, --report and --json alone, not with {found[0]}")


def check_emulation(context, device: str, checks: tuple[str, ...]):
    """Raises: click.UsageError for what does not go with --emulate."""
    given = context.params
    if given["compile_for"] is not None or given["save_truth"] is not None:
        other = "--compile-for" if given["save_truth"] is None else "--save-truth"
        raise click.UsageError(f"--emulate is of what JAX computes, and with {other} it computes nothing")
    if device not in ("auto", "cpu"):
        raise click.UsageError(f"--emulate is of the CPU: leave --device {device} out")
    if "throughput" in checks or given["sweep"]:
        raise click.UsageError("--emulate says nothing of speed: leave throughput out")
