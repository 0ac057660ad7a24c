"""One verification: the truth, made or read; JAX, judged by it; and how fast both frameworks are."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from ..downloads.cache import sha256 as file_sha256
from ..snapshot import Snapshot, read_snapshot
from .cases import Plan
from .oracle_process import make_truth
from .outcome import Outcome, Progress
from .parameter_hashes import parameter_hashes
from .request import FromSnapshot, FromTruth, Request, VerifyError
from .throughput.job import Job
from .throughput.measure import measure, sweep
from .truth import Truth


def verify(request: Request, progress: Progress = lambda stage: None) -> Outcome:
    """Do all of it. JAX must not have been started on another device than the request's.

    Raises: ConverterError, CheckpointError, ProcessFailed, OSError.
    """
    from .jax_side.candidate import load_candidate
    from .jax_side.judgement import judge
    from .jax_side.provenance import refuse_other_checkpoint, refuse_other_truth

    started = time.perf_counter()
    checkpoint, held = request.checkpoint, request.held
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(read_snapshot(request.snapshot)) if request.snapshot else None
        if isinstance(request, FromTruth):
            truth = stack.enter_context(Truth(request.truth))
            if snapshot is not None and truth.config != snapshot.config:
                raise VerifyError(f"{request.truth}: is of another network than {snapshot.path}")
            if snapshot is not None:
                refuse_other_truth(request.truth, truth, snapshot)
            candidate = load_candidate(
                truth.config, truth.plan.precision, checkpoint=checkpoint, snapshot=snapshot, held=held
            )
            if checkpoint is not None:
                about = truth.facts.snapshot
                refuse_other_checkpoint(
                    checkpoint, candidate, about["name"], about["sha256"], lambda: truth.facts.parameters
                )
        else:
            assert snapshot is not None
            plan = request.plan
            candidate = load_candidate(
                snapshot.config, plan.precision, checkpoint=checkpoint, snapshot=snapshot, held=held
            )
            if checkpoint is not None:
                sha256, of_snapshot = file_sha256(snapshot.path), snapshot
                refuse_other_checkpoint(
                    checkpoint, candidate, snapshot.path.name, sha256, lambda: parameter_hashes(of_snapshot)
                )
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edm2-verify-"))) / "truth.npz"
            progress("PyTorch computes the truth, JAX compiles")
            make_truth(request, path, lambda: candidate.try_to_prepare(plan))
            truth = stack.enter_context(Truth(path))
        outcome = judge(candidate, truth, snapshot=snapshot, checkpoint=checkpoint, progress=progress)
        if snapshot is not None:
            outcome.throughput = _throughput(request, snapshot, progress)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _throughput(request: Request, snapshot: Snapshot, progress: Progress) -> list[dict[str, Any]]:
    """In the precision of the plan; where a truth file has that, in float32."""
    plan = request.plan if isinstance(request, FromSnapshot) else Plan()
    job = Job(str(snapshot.path), plan.batch, plan.precision, request.device)
    if request.sweep:
        return sweep(snapshot.config, job, progress)
    return [measure(snapshot.config, job, progress)] if "throughput" in plan.checks else []
