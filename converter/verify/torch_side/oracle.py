"""What PyTorch computes: the truth in float64, and PyTorch's own distance from it in the precision that is judged.

It runs in a separate process, so that its memory, its switches and any embedded code stay apart from JAX:

    python -m converter.verify.torch_side.oracle < JOB.json
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before CUDA starts


from jax_edm2.state_layout import NET

from ...convert import describe
from ...errors import ConverterError
from ...opening import is_checkpoint, is_training_state, open_side, open_weights
from ...snapshot import Snapshot
from ...training_state import TrainedWeights
from ...weights import Weights
from .. import cases
from ..facts import NO_SOURCE, Facts
from ..parameter_hashes import hash_of, parameter_hashes
from ..truth import TruthWriter, check_room
from .derivative import Derivative
from .forward import Forward
from .gradients import Gradients
from .job import Job
from .precision import set_torch, torch_facts
from .session import Session
from .training import Training
from .trajectory import trajectory_errors, write_trajectory


def compute(job: Job):
    """Write the truth file of a job. Raises: ConverterError, OSError."""
    started = time.perf_counter()
    switches = set_torch(job.plan.precision, job.device)
    opened = open_side(Path(job.snapshot), job.weights, job.config_from)
    with opened as snapshot, TruthWriter(Path(job.output)) as truth, contextlib.ExitStack() as stack:
        check_room(job.plan, snapshot.config)
        session = Session(snapshot, job, truth)
        forward, gradients, derivative = Forward(session), Gradients(session), Derivative(session)
        training = _training(session, job, stack) if "training" in job.plan.checks else None
        with session.reference.truth():
            _write(session, forward, gradients, derivative, training)
        session.reference.lower()
        errors = _errors(session, forward, gradients, derivative, training)
        session.bar.close()
        facts = Facts(
            plan=job.plan,
            config=snapshot.config,
            snapshot=_about(snapshot, job.weights),
            reference=job.reference,
            parameters=parameter_hashes(snapshot),
            amplification=forward.amplification,
            not_finite=session.not_finite,
            gradient_sizes=gradients.sizes,
            training=None if training is None else training.about,
            errors=errors,
            repeat=forward.repeat,
            environment=torch_facts(job.device),
            switches=switches,
            seconds=round(time.perf_counter() - started, 1),
        )
        truth.finish(facts)


def _training(session: Session, job: Job, stack: contextlib.ExitStack) -> Training:
    """Of the whole training state, if the network that is judged is what a training goes on with; else a new one."""
    path = Path(job.snapshot)
    if job.weights != NET or not is_training_state(path):
        return Training(session, None, cases.Training())
    state = stack.enter_context(open_weights(path, config_from=None if is_checkpoint(path) else job.config_from))
    found = describe(state).training
    assert found is not None
    return Training(session, state, cases.Training(found.images, found.steps, found.stds))


def _write(session: Session, forward: Forward, gradients: Gradients, derivative: Derivative, training: Training | None):
    """The truth of all checks."""
    if "forward" in session.plan.checks:
        for name, case in session.cases():
            forward.write(name, case)
    if "trajectory" in session.plan.checks:
        write_trajectory(session)
    if "gradients" in session.plan.checks:
        gradients.write()
    if "derivative" in session.plan.checks:
        derivative.write()
    if training is not None:
        training.write()


def _errors(
    session: Session, forward: Forward, gradients: Gradients, derivative: Derivative, training: Training | None
) -> dict[str, Any]:
    """Of PyTorch in the precision that is judged, in all checks."""
    if "forward" in session.plan.checks:
        for name, case in session.cases():
            forward.compare(name, case)
    errors = dict(forward.errors)
    if "trajectory" in session.plan.checks:
        errors["trajectory"] = trajectory_errors(session)
    if "gradients" in session.plan.checks:
        errors["gradients"] = gradients.errors()
    if "derivative" in session.plan.checks:
        errors["derivative"] = derivative.errors()
    if training is not None:
        errors["training"] = training.errors()
    return errors


def _about(snapshot: Weights, part: str | None) -> dict[str, Any]:
    source = snapshot.source_hash if isinstance(snapshot, Snapshot) else NO_SOURCE
    about: dict[str, Any] = {"name": snapshot.path.name, "sha256": hash_of(snapshot.path), "source": source}
    if isinstance(snapshot, TrainedWeights):
        about["weights"] = part
    assumed = describe(snapshot).assumed
    return {**about, "assumed": list(assumed)} if assumed else about


def main():
    job = Job.from_json(sys.stdin.read())
    try:
        compute(job)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ConverterError, OSError, MemoryError) as error:
        print(f"edm2-verify: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
