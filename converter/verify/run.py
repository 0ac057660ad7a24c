"""One verification: the truth, made or read; JAX, judged by it; and how fast both frameworks are."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from jax_edm2.config import EDM2Config

from ..opening import open_side
from ..weights import Weights
from .cases import OF_ANY_DENOISER, Plan
from .oracle_process import make_truth
from .outcome import Outcome, Progress
from .parameter_hashes import hash_of, parameter_hashes
from .request import FromSnapshot, FromTruth, Request, VerifyError
from .throughput.job import STEPS, Job
from .throughput.measure import measure, sweep
from .truth import Truth


def verify(request: Request, progress: Progress = lambda stage: None) -> Outcome:
    """Do all of it. JAX must not have been started on another device than the request's.

    Raises: ConverterError, CheckpointError, ProcessFailed, OSError.
    """
    from .jax_side.candidate import Candidate
    from .jax_side.emulation import emulated
    from .jax_side.judgement import judge
    from .jax_side.provenance import refuse_other_checkpoint, refuse_other_truth

    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(emulated(request.emulate))
        choice = request.weights, request.config_from
        snapshot = stack.enter_context(open_side(request.snapshot, *choice)) if request.snapshot else None
        if isinstance(request, FromTruth):
            truth = stack.enter_context(Truth(request.truth))
            if snapshot is not None and truth.config != snapshot.config:
                raise VerifyError(f"{request.truth}: is of another network than {snapshot.path}")
            if snapshot is not None:
                refuse_other_truth(request.truth, truth, snapshot)
            candidate = _candidate(request, truth.config, truth.plan, snapshot)
            if isinstance(candidate, Candidate) and candidate.record is not None:
                about = truth.facts.snapshot
                refuse_other_checkpoint(candidate, about["name"], about["sha256"], lambda: truth.facts.parameters)
        else:
            assert snapshot is not None
            plan = request.plan
            candidate = _candidate(request, snapshot.config, plan, snapshot)
            if isinstance(candidate, Candidate) and candidate.record is not None:
                sha256, of_snapshot = hash_of(snapshot.path), snapshot
                refuse_other_checkpoint(candidate, snapshot.path.name, sha256, lambda: parameter_hashes(of_snapshot))
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edm2-verify-"))) / "truth.npz"
            progress("PyTorch computes the truth, JAX compiles")
            make_truth(request, path, lambda: candidate.try_to_prepare(plan))
            truth = stack.enter_context(Truth(path))
        outcome = judge(candidate, truth, snapshot=snapshot, checkpoint=request.checkpoint, progress=progress)
        if snapshot is not None:
            outcome.throughput = _throughput(request, snapshot, progress)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _candidate(request: Request, config: EDM2Config, plan: Plan, snapshot: Weights | None):
    """What is judged: our network, or somebody else's."""
    from .jax_side.candidate import load_candidate
    from .jax_side.ported import Ported

    if request.port is not None:
        if not {*plan.checks} & {*OF_ANY_DENOISER}:
            raise VerifyError(
                f"{request.port.name}: of a port, {', '.join(OF_ANY_DENOISER)} can be judged, and the plan has none of "
                "these --checks"
            )
        return Ported.checked(request.port, config, plan)
    return load_candidate(
        config,
        plan.precision,
        checkpoint=request.checkpoint,
        snapshot=snapshot,
        held=request.held,
        choice=(request.weights, request.config_from),
    )


def _throughput(request: Request, snapshot: Weights, progress: Progress) -> list[dict[str, Any]]:
    """In the precision of the plan; where a truth file has that, in float32."""
    plan = request.plan if isinstance(request, FromSnapshot) else Plan()
    choice = request.weights, request.config_from
    job = Job(str(snapshot.path), plan.batch, plan.precision, request.device, STEPS, *choice)
    if request.sweep:
        return sweep(snapshot.config, job, progress)
    return [measure(snapshot.config, job, progress)] if "throughput" in plan.checks else []
