"""The verdict on a JAX network: everything that is measured of it, and what that adds up to."""

import dataclasses
from pathlib import Path

from jax_edm2.config import EDM2Config
from jax_edm2.record import Code, Record

from ... import embedded
from ...convert import describe
from ...weights import Weights
from ..facts import NO_SOURCE
from ..outcome import Outcome, Progress, unsure, warnings, wrong
from ..truth import Truth
from ..verdict import AGREES, DISAGREES, INCONCLUSIVE, MEASURED, Tolerance, guilty, tolerance_on
from . import emulation
from .candidate import Candidate
from .examination import examine
from .ported import Ported
from .precision import jax_facts, jax_precision, jax_switches


def judge(
    candidate: Candidate | Ported,
    truth: Truth,
    *,
    snapshot: Weights | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda stage: None,
) -> Outcome:
    """Measure, and judge by the truth. snapshot, checkpoint: where the candidate comes from, as far as is known."""
    plan, tolerance = truth.plan, _tolerance(truth)
    with jax_precision(plan.precision):
        switches = jax_switches(plan.precision)
        findings = examine(candidate, truth, tolerance, snapshot=snapshot, progress=progress)
    port, record = (candidate.port.name, None) if isinstance(candidate, Ported) else (None, candidate.record)
    differences = [] if isinstance(candidate, Ported) else _config_differences(truth.config, candidate.net.config)
    disagreements = list(wrong(findings, differences, record, truth.facts.snapshot.get("sha256")))
    doubts = list(unsure(truth, switches, tolerance, findings))
    certain = bool(findings.parameters or differences)  # no precision switch excuses these
    verdict = DISAGREES if certain or (disagreements and not doubts) else INCONCLUSIVE if doubts else AGREES
    if plan.checks == ("throughput",):
        verdict = MEASURED
    return Outcome(
        verdict=verdict,
        reasons=disagreements + doubts if verdict == DISAGREES else doubts + disagreements,
        guilty=guilty(truth.config, findings.forward, findings.parameters or []),
        warnings=list(warnings(plan, findings, switches, port)) if truth.golden is None else [],
        findings=findings,
        environment={"JAX": jax_facts(), "PyTorch": truth.facts.environment},
        switches={"JAX": switches, "PyTorch": truth.facts.switches},
        truth=truth.facts,
        tolerance=tolerance,
        snapshot=snapshot.path if snapshot else None,
        checkpoint=checkpoint,
        port=port,
        code=_code(truth, snapshot, record),
    )


def _code(truth: Truth, snapshot: Weights | None, record: Record | None) -> Code | None:
    """Whose network the snapshot of the truth carries, as far as can be told without the snapshot."""
    if snapshot is not None:
        return describe(snapshot).code
    if truth.golden is not None:
        return None
    if truth.facts.snapshot["source"] == NO_SOURCE:
        return None
    sha256 = truth.facts.snapshot["source"].removeprefix("sha256:")
    if known := embedded.known_text(sha256):
        return Code(sha256, known=known)
    return record.code if record and record.code and record.code.sha256 == sha256 else Code(sha256)


def _tolerance(truth: Truth) -> Tolerance:
    if truth.golden is not None:
        return truth.golden.tolerance
    return tolerance_on(emulation.platform(), truth.plan.precision)


def _config_differences(expected: EDM2Config, found: EDM2Config) -> list[str]:
    pairs = ((f.name, getattr(expected, f.name), getattr(found, f.name)) for f in dataclasses.fields(EDM2Config))
    return [f"{name} is {value!r}, should be {wanted!r}" for name, wanted, value in pairs if wanted != value]
