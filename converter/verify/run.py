"""One verification: the oracle's process, the candidate, throughput, and what it all says."""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter import embedded, processes
from converter.errors import ConverterError, ProcessFailed
from converter.snapshot import Snapshot, read_snapshot
from converter.verify.cases import Plan
from converter.verify.taps import DENOISED, EMBEDDING, LOG_VARIANCE, tap_sizes
from converter.verify.torch_side.job import HELD, Job
from converter.verify.truth import Truth
from converter.verify.verdict import (
    AGREES,
    DISAGREES,
    EXIT_CODES,
    INCONCLUSIVE,
    MEASURED,
    TOLERANCES,
    Guilty,
    Measurement,
    Tolerance,
    guilty,
)
from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.record import Code, Record

if TYPE_CHECKING:
    from converter.verify.jax_side.candidate import Candidate
    from converter.verify.jax_side.examination import Findings

# glibc gives freed memory back to the system and faults it in again at every operation, unless told not to: that is a
# third of PyTorch's time on large float64 activations.
OPENMP = {"OMP_WAIT_POLICY": "passive"}  # waiting threads leave the cores to whoever works
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
INTERRUPTED = 130
Progress = Callable[[str], None]


class VerifyError(ConverterError):
    """A verification that cannot be done as asked."""


@dataclass(frozen=True)
class Options:
    """What edm2-verify was asked for.

    device: of JAX; auto, cpu, gpu or tpu. truth: a file to use, not to make. held: bytes of weights, see `oracle_job`.
    """

    snapshot: Path | None = None
    checkpoint: Path | None = None
    plan: Plan = field(default_factory=Plan)
    device: str = "auto"
    reference: str = "torch_ref"
    truth: Path | None = None
    sweep: bool = False
    held: float = HELD


@dataclass
class Outcome:
    """Everything that a report says."""

    verdict: str
    reasons: list[str]  # why it is not `agrees`, most important first
    guilty: list[Guilty]
    warnings: list[str]
    findings: "Findings"
    facts: dict[str, Any]
    truth: dict[str, Any]  # facts of the truth file
    tolerance: Tolerance
    options: Options
    code: Code | None = None  # of the snapshot; None where nothing is known about it
    throughput: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def measurements(self) -> dict[str, list[Measurement]]:
        """By check."""
        return {name: getattr(self.findings, name) for name in ("forward", "gradients", "trajectory")}

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def run_oracle(options: Options, output: Path, meanwhile: Callable[[], None] = lambda: None):
    """Compute the truth file in a process of its own, and do something else meanwhile. Raises: ProcessFailed."""
    _check_room(options, output.parent)
    snapshot, truth = (os.path.abspath(path or "") for path in (options.snapshot, output))  # it may run elsewhere
    job = Job(snapshot, truth, options.plan, options.reference, torch_device(options), options.held)
    with _oracle(options.reference) as process:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # type: ignore[union-attr]
            pipe.write(job.to_json())  # whoever has died by now has an exit code
        meanwhile()
        process.wait()
    if process.returncode < 0 and process.returncode != -signal.SIGINT:
        raise VerifyError(
            f"the PyTorch process was ended by signal {-process.returncode}, for want of memory most likely: "
            "try a smaller --batch, or fewer --checks"
        )
    if process.returncode:
        raise ProcessFailed(INTERRUPTED if process.returncode < 0 else process.returncode)


@contextlib.contextmanager
def _oracle(reference: str) -> Iterator[subprocess.Popen]:
    """The process that computes the truth; killed when the `with` statement ends."""
    command = processes.module("converter.verify.torch_side.oracle")
    if reference == "embedded":
        with processes.apart(command, **OPENMP, **KEEP_MEMORY) as process:
            yield process
        return
    environment = {**OPENMP, **KEEP_MEMORY, **processes.environment()}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def truth_bytes(config: EDM2Config, plan: Plan) -> int:
    """Of the arrays of a truth file, nearly all of which are taps in float64."""
    values = 0
    if "forward" in plan.checks:
        sizes = tap_sizes(config)
        twice = {DENOISED, LOG_VARIANCE} | {tap for tap in sizes if tap.operation == "clip"}
        twice |= {tap for tap in sizes if tap.scope == EMBEDDING and config.label_dim}  # without labels, too
        values += plan.batch * len(plan.seeds) * sum(size * (1 + (tap in twice)) for tap, size in sizes.items())
    if "trajectory" in plan.checks:
        values += (plan.steps + 1) * config.img_channels * config.img_resolution**2
    if "gradients" in plan.checks:  # in float32, the new value and its average
        values += 3 * sum(map(math.prod, expected_tree(config).values())) // 2
    return 8 * values


def _check_room(options: Options, folder: Path):
    """Raises: VerifyError if what is to be written to a folder does not fit."""
    with read_snapshot(options.snapshot or "") as snapshot:
        needed, free = truth_bytes(snapshot.config, options.plan), shutil.disk_usage(folder).free
    if needed > free:
        raise VerifyError(
            f"{folder}: the truth takes {needed / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free: make room, "
            "try a smaller --batch, or another folder (TMPDIR, for temporary files)"
        )


def torch_device(options: Options) -> str:
    """Of PyTorch in the precision that is judged: cuda where JAX may use a GPU and PyTorch sees one."""
    if options.device == "cpu" or not Path("/dev/nvidiactl").exists():
        return "cpu"
    code = "import torch; print(torch.cuda.is_available())"
    seen = subprocess.run(processes.python(code), env=processes.environment(), capture_output=True, text=True)
    return "cuda" if seen.stdout.strip() == "True" else "cpu"


def verify(options: Options, progress: Progress = lambda stage: None) -> Outcome:
    """Do all of it. JAX must not have been started on another device than options.device.

    Raises: ConverterError, CheckpointError, ProcessFailed, OSError.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        snapshot = stack.enter_context(read_snapshot(options.snapshot)) if options.snapshot else None
        if options.truth is not None:
            truth = stack.enter_context(Truth(options.truth))
            if snapshot is not None and truth.config != snapshot.config:
                raise VerifyError(f"{options.truth}: is of another network than {snapshot.path}")
            candidate = load_candidate(options, truth.plan.precision, truth.config, snapshot)
        else:
            assert snapshot is not None
            candidate = load_candidate(options, options.plan.precision, snapshot.config, snapshot)
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edm2-verify-"))) / "truth.npz"
            progress("PyTorch computes the truth, JAX compiles")
            run_oracle(options, path, lambda: _prepare(candidate, options.plan))
            truth = stack.enter_context(Truth(path))
        outcome = judge(options, candidate, truth, snapshot, progress)
        if "throughput" in options.plan.checks and snapshot is not None:
            outcome.throughput = _throughput(options, snapshot, progress)
    outcome.seconds = time.perf_counter() - started
    return outcome


def load_candidate(options: Options, precision: str, config: EDM2Config, snapshot: Snapshot | None) -> "Candidate":
    """The network of the checkpoint, or of the snapshot converted in memory, or left where it is if it is large."""
    import jax.numpy as jnp

    from converter.convert import in_memory
    from converter.verify.jax_side.candidate import Candidate
    from converter.verify.jax_side.precision import jax_dtype
    from converter.verify.jax_side.unread import unread
    from jax_edm2.checkpoint import load
    from jax_edm2.network import Precond

    dtype = jax_dtype(precision)
    large = 4 * sum(map(math.prod, expected_tree(config).values())) > options.held
    if options.checkpoint is not None:
        stored_dtype = None if large else jnp.float32
        net, variables = load(options.checkpoint, dtype=stored_dtype, compute_dtype=dtype)
    else:
        assert snapshot is not None
        net, variables = Precond(config, dtype), unread(snapshot) if large else in_memory(snapshot)
    return Candidate(net, variables, config)


def _prepare(candidate: "Candidate", plan: Plan):
    from converter.verify.jax_side.precision import jax_precision

    with jax_precision(plan.precision), contextlib.suppress(Exception):  # what fails here fails again when examined
        candidate.prepare(plan)


def judge(
    options: Options, candidate: "Candidate", truth: Truth, snapshot: Snapshot | None, progress: Progress
) -> Outcome:
    """Everything that is measured of JAX, and the verdict."""
    from converter.verify.jax_side.examination import examine
    from converter.verify.jax_side.precision import jax_facts, jax_precision, jax_switches
    from jax_edm2.checkpoint import read_record

    plan, tolerance = truth.plan, _tolerance(truth)
    with jax_precision(plan.precision):
        switches = jax_switches(plan.precision)
        findings = examine(candidate, truth, tolerance, snapshot=snapshot, progress=progress)
    differences = config_differences(truth.config, candidate.net.config)
    facts = {
        "environment": {"JAX": jax_facts(), "PyTorch": truth.facts["environment"]},
        "switches": {"JAX": switches, "PyTorch": truth.facts["switches"]},
    }
    record = read_record(options.checkpoint) if options.checkpoint else None
    wrong = list(_wrong(findings, differences, record.dtype if record else None))
    unsure = list(_unsure(truth, switches, tolerance, findings))
    certain = bool(findings.parameters or differences)  # no precision switch excuses these
    verdict = DISAGREES if certain or (wrong and not unsure) else INCONCLUSIVE if unsure else AGREES
    if plan.checks == ("throughput",):
        verdict = MEASURED
    return Outcome(
        verdict=verdict,
        reasons=wrong + unsure if verdict == DISAGREES else unsure + wrong,
        guilty=guilty(truth.config, findings.forward, findings.parameters or []),
        warnings=list(_warnings(plan, findings)) if truth.golden is None else [],
        findings=findings,
        facts=facts,
        truth=truth.facts,
        tolerance=tolerance,
        options=options,
        code=_code(truth, snapshot, record),
    )


def _code(truth: Truth, snapshot: Snapshot | None, record: Record | None) -> Code | None:
    """Whose network the snapshot of the truth carries, as far as can be told without the snapshot."""
    if snapshot is not None:
        return embedded.identify(snapshot.source)
    if truth.golden is not None:
        return None
    sha256 = truth.facts["snapshot"]["source"].removeprefix("sha256:")
    if known := embedded.known_text(sha256):
        return Code(sha256, known=known)
    return record.code if record and record.code and record.code.sha256 == sha256 else Code(sha256)


def _tolerance(truth: Truth) -> Tolerance:
    import jax

    if truth.golden is not None:
        return Tolerance(**truth.golden["tolerance"])
    if truth.plan.precision == "float32" and jax.default_backend() == "tpu":
        return TOLERANCES["float32 on TPU"]
    return TOLERANCES[truth.plan.precision]


def config_differences(expected: EDM2Config, found: EDM2Config) -> list[str]:
    pairs = ((f.name, getattr(expected, f.name), getattr(found, f.name)) for f in dataclasses.fields(EDM2Config))
    return [f"{name} is {value!r}, should be {wanted!r}" for name, wanted, value in pairs if wanted != value]


def _wrong(findings, differences, stored_dtype) -> Iterator[str]:
    """Sentences on what disagrees."""
    if differences:
        yield f"the checkpoint's configuration is not the snapshot's: {'; '.join(differences)}"
    if findings.parameters:
        name, why = findings.parameters[0]
        more = f", and {len(findings.parameters) - 1} more" if len(findings.parameters) > 1 else ""
        hint = (
            f" (the checkpoint is stored as {stored_dtype})" if stored_dtype in ("bfloat16", "float16") and more else ""
        )
        yield f"parameters are not equal{hint}: {name} {why}{more}"
    for where, why in findings.crashes:
        yield f"{where}: JAX {why}"
    for check, measurements in (
        ("forward", findings.forward),
        ("gradients", findings.gradients),
        ("trajectory", findings.trajectory),
    ):
        bad = [m for m in measurements if not m.agrees]
        if bad:
            first = next((m for m in bad if m.kind == "isolated"), bad[0])
            yield f"{check}: {len(bad)} of {len(measurements)} disagree; {first.kind} {first.name}: {first.failure}"


def _unsure(truth: Truth, switches, tolerance: Tolerance, findings) -> Iterator[str]:
    """Sentences on why nothing can be concluded."""
    for problem in (truth.facts["switches"]["problem"], switches["problem"]):
        if problem:
            yield problem
    if truth.facts["not_finite"]:
        names = truth.facts["not_finite"]
        yield f"the truth is not finite at {names[0]} and {len(names) - 1} other places: it cannot say what is right"
    repeat = truth.facts["repeat"]
    if repeat is not None and repeat > tolerance.isolated:
        yield f"the reference is not repeatable: two runs of PyTorch differ by {repeat:.1e}"
    off = [
        m
        for measurements in (findings.forward, findings.gradients, findings.trajectory)
        for m in measurements
        if m.torch_error > max(tolerance.highest(m.kind), m.limit)
    ]
    if off:
        m = max(off, key=lambda m: m.torch_error)
        yield f"PyTorch itself is {m.torch_error:.1e} from the truth at {len(off)} places, {m.kind} {m.name} among them"


def _warnings(plan: Plan, findings) -> Iterator[str]:
    if plan.precision != "float32":
        yield f"{plan.precision} is a health check; the verdict on a conversion is given in float32"
    blind = [m.name for m in findings.forward if m.kind == "isolated" and m.difference.size == 0]
    if blind:
        yield f"{len(blind)} taps carry nothing but zeros and prove nothing: {', '.join(blind[:3])} ... (gains of 0?)"
    if plan.batch < 2 or max(plan.sigmas) / min(plan.sigmas) < 1000:
        yield "few noise levels: several sigma from 0.002 to 80 in a batch show more"


def _throughput(options: Options, snapshot: Snapshot, progress: Progress) -> list[dict[str, Any]]:
    from converter.verify.throughput import worker
    from converter.verify.throughput.measure import measure, sweep

    job = worker.Job(str(snapshot.path), options.plan.batch, options.plan.precision, options.device)
    return sweep(snapshot.config, job, progress) if options.sweep else [measure(snapshot.config, job, progress)]
