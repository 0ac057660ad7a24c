"""What a verification found, and the sentences that say it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_edm2.record import Code, Record

from .cases import Plan
from .facts import Facts
from .truth import Truth
from .verdict import EXIT_CODES, Guilty, Measurement, Tolerance

Progress = Callable[[str], None]  # is told the stage that begins


@dataclass
class Findings:
    """Everything that was measured. parameters: (name, how it differs) of those that are not equal."""

    parameters: list[tuple[str, str]] | None = None
    forward: list[Measurement] = field(default_factory=list)
    gradients: list[Measurement] = field(default_factory=list)
    derivative: list[Measurement] = field(default_factory=list)
    trajectory: list[Measurement] = field(default_factory=list)
    training: list[Measurement] = field(default_factory=list)
    crashes: list[tuple[str, str]] = field(default_factory=list)  # (where, why) of what JAX could not compute
    sigmas: list[float] | None = None  # of the trajectory's states
    psnr: float | None = None  # of the trajectory's end, in dB
    samples: dict[str, Any] = field(default_factory=dict)  # and that itself, [C, H, W], of the truth, PyTorch and JAX

    @property
    def measurements(self) -> dict[str, list[Measurement]]:
        """By check."""
        return {
            "forward": self.forward,
            "gradients": self.gradients,
            "derivative": self.derivative,
            "trajectory": self.trajectory,
            "training": self.training,
        }


@dataclass
class Outcome:
    """Everything that a report says."""

    verdict: str
    reasons: list[str]  # why it is not `agrees`, most important first
    guilty: list[Guilty]
    warnings: list[str]
    findings: Findings
    environment: dict[str, Any]  # of JAX and PyTorch
    switches: dict[str, Any]  # likewise
    truth: Facts  # of the truth file
    tolerance: Tolerance
    snapshot: Path | None = None
    checkpoint: Path | None = None
    port: str | None = None  # the name of somebody else's denoiser, if it is one's
    code: Code | None = None  # of the snapshot; None where nothing is known about it
    throughput: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def measurements(self) -> dict[str, list[Measurement]]:
        """By check."""
        return self.findings.measurements

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def wrong(findings: Findings, differences: list[str], record: Record | None, sha256: str | None) -> Iterator[str]:
    """Sentences on what disagrees. differences: of configurations; record: the checkpoint's; sha256: the snapshot's."""
    if differences:
        yield f"the checkpoint's configuration is not the snapshot's: {'; '.join(differences)}"
    if findings.parameters:
        name, why = findings.parameters[0]
        more = f", and {len(findings.parameters) - 1} more" if len(findings.parameters) > 1 else ""
        yield f"parameters are not equal{_history(record, sha256, len(findings.parameters))}: {name} {why}{more}"
    for where, why in findings.crashes:
        yield f"{where}: JAX {why}"
    for check, measurements in findings.measurements.items():
        bad = [m for m in measurements if not m.agrees]
        if bad:
            first = next((m for m in bad if m.kind == "isolated"), bad[0])
            yield f"{check}: {len(bad)} of {len(measurements)} disagree; {first.kind} {first.name}: {first.failure}"


def _history(record: Record | None, sha256: str | None, count: int) -> str:
    """How it may have come to parameters that differ, by what the checkpoint says of itself."""
    tensors = f"{count} tensor{'s' * (count > 1)}"
    if record is None or sha256 is None:
        return ""
    if record.fine_tuned_from is not None and record.fine_tuned_from.sha256 == sha256:
        return f" (the checkpoint is fine-tuned from this snapshot: {tensors})"
    if record.source is None or record.source.sha256 != sha256:
        return ""
    if count > 1 and record.dtype in ("bfloat16", "float16"):
        return f" (the checkpoint is stored as {record.dtype}, or was altered since it was converted: {tensors})"
    return f" (the checkpoint was altered since it was converted: {tensors})"


def unsure(truth: Truth, switches: dict[str, Any], tolerance: Tolerance, findings: Findings) -> Iterator[str]:
    """Sentences on why nothing can be concluded. switches: JAX's."""
    excused = switches.get("emulated") and truth.plan.precision == "tf32"  # which PyTorch's CPU does not have
    for problem in (None if excused else truth.facts.switches["problem"], switches["problem"]):
        if problem:
            yield problem
    if truth.facts.not_finite:
        names = truth.facts.not_finite
        yield f"the truth is not finite at {names[0]} and {len(names) - 1} other places: it cannot say what is right"
    repeat = truth.facts.repeat
    if repeat is not None and repeat > tolerance.isolated:
        yield f"the reference is not repeatable: two runs of PyTorch differ by {repeat:.1e}"
    off = [
        m
        for measurements in findings.measurements.values()
        for m in measurements
        if m.torch_error > max(tolerance.highest(m.kind), m.limit)
    ]
    if off:
        m = max(off, key=lambda m: m.torch_error)
        yield f"PyTorch itself is {m.torch_error:.1e} from the truth at {len(off)} places, {m.kind} {m.name} among them"


def warnings(plan: Plan, findings: Findings, switches: dict[str, Any], port: str | None = None) -> Iterator[str]:
    """Sentences on what a reader should know beside the verdict. switches: JAX's. port: whose denoiser."""
    if port is not None:
        without = "logvar, " if {m.name for m in findings.forward} == {"denoised"} else ""
        yield f"not judged: {without}parameters, operations inside and gradients by parameters, which are {port}'s own"
    if device := switches.get("emulated"):
        yield f"the products of a {device.upper()} are emulated on the CPU: nothing ran on one"
    if plan.precision != "float32":
        yield f"{plan.precision} is a health check; the verdict on a conversion is given in float32"
    blind = [m.name for m in findings.forward if m.kind == "isolated" and m.difference.size == 0]
    if blind:
        yield f"{len(blind)} taps carry nothing but zeros and prove nothing: {', '.join(blind[:3])} ... (gains of 0?)"
    if plan.batch < 2 or max(plan.sigmas) / min(plan.sigmas) < 1000:
        yield "few noise levels: several sigma from 0.002 to 80 in a batch show more"
