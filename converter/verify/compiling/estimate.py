"""What programs would need on a target: the worker is run, and what it counts is held against the device.

All of it is the compiler's and the datasheet's word. Nothing is measured.
"""

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax_edm2.config import EDM2Config

from ... import processes
from ...flops import multiply_accumulates
from ..request import VerifyError
from .job import DECODER, DENOISER, SAMPLER, TRAINING, Job
from .targets import Target

MODULES = {"tpu": ("libtpu",), "gpu": ("jax_plugins.xla_cuda12",)}
EXTRAS = {"tpu": "tpu-compile", "gpu": "gpu-compile"}
ENVIRONMENT = {
    # Without the last two libtpu asks a metadata server what machine this is, and is for one process at a time.
    "tpu": {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    "gpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": "--xla_gpu_autotune_level=0"},
}
ROOM = 0.95  # of a device's memory that programs may take


@dataclass(frozen=True)
class Estimate:
    """Of a program. error: why it does not compile; then there is nothing else. memory, cost, counts: the worker's, of
    one chip. evaluations: of the denoiser that it makes."""

    program: str
    error: str | None
    seconds: float
    memory: dict[str, int]
    cost: dict[str, float]
    counts: dict[str, Any]
    evaluations: int
    target: Target
    job: Job

    @property
    def bytes(self) -> int:
        """Of memory, on one chip: arguments, results that are not in their place, temporaries and code."""
        memory = self.memory
        return sum(memory[k] for k in ("argument", "output", "temp", "generated_code")) - memory["alias"]

    @property
    def fits(self) -> bool:
        return self.bytes <= ROOM * self.target.device.memory

    @property
    def largest_batch(self) -> int:
        """On all chips: what is for images grows as their number does, and what is for weights does not."""
        images = max(self.memory["temp"] + self.memory["output"] - self.memory["alias"], 1)
        if self.program == TRAINING:
            images = max(self.memory["temp"], 1)
        free = ROOM * self.target.device.memory - (self.bytes - images)
        return max(int(free / images * self.job.batch), 0)

    @property
    def flop(self) -> float | None:
        """Of products, on one chip, from the architecture: the compiler does not count what libraries do. None of the
        decoder, which is no EDM2 network."""
        if self.program == DECODER:
            return None
        per_image = 2 * multiply_accumulates(self.job.config) * (3 if self.program == TRAINING else 1)
        return per_image * self.evaluations * self.job.batch / self.target.chips

    @property
    def roofline_seconds(self) -> float | None:
        """No program can be faster: of one chip's arithmetic and memory, what takes longer."""
        if self.flop is None:
            return None
        return max(
            self.flop / self.target.device.peak(self.job.precision), (self.moved or 0.0) / self.target.device.bandwidth
        )

    @property
    def moved(self) -> float | None:
        """Bytes, on one chip. None of the sampler: what its loop does is counted once, however often it runs."""
        return None if self.program == SAMPLER else self.cost.get("bytes accessed")

    @property
    def cycle_seconds(self) -> float | None:
        """By the compiler's own count of cycles, where it makes one; None of the sampler, as `moved`."""
        cycles = 0 if self.program == SAMPLER else sum(self.counts["cycles"].values())
        return cycles / self.target.device.details["clock"] if cycles else None

    @property
    def share_of_peak(self) -> float | None:
        if self.flop is None or self.cycle_seconds is None:
            return None
        return self.flop / self.cycle_seconds / self.target.device.peak(self.job.precision)

    def to_json(self) -> dict[str, Any]:
        about = {"program": self.program, "batch": self.job.batch, "precision": self.job.precision}
        if self.error is not None:
            return {**about, "error": self.error}
        figures = ("seconds", "memory", "cost", "counts", "bytes", "fits", "largest_batch", "flop", "roofline_seconds")
        more = ("cycle_seconds", "share_of_peak")
        return {**about, "error": None, **{name: getattr(self, name) for name in (*figures, *more)}}


def usual_programs(config: EDM2Config) -> tuple[str, ...]:
    """All but training; a decoder where there are latents."""
    return (DENOISER, SAMPLER, *([DECODER] if config.img_channels == 4 else []))


def estimate(job: Job, progress: Callable[[str], None] = lambda stage: None) -> list[Estimate]:
    """Compile a job's programs. progress: is told which. Raises: VerifyError, OSError."""
    target = Target.parse(job.target)
    platform = target.device.platform
    if job.batch % target.chips:
        raise VerifyError(f"--batch {job.batch} does not divide into {target.chips} chips of {target.text}")
    if job.precision not in target.device.flops:
        known = ", ".join(target.device.flops)
        raise VerifyError(f"{target.device.name} does not compute in {job.precision}, but in {known}")
    missing = [name for name in MODULES[platform] if not _there(name)]
    if missing:
        raise VerifyError(
            f"compiling for {target.text} takes {missing[0].partition('.')[0]}: "
            f"pip install 'edm2-jax[{EXTRAS[platform]}]'"
        )
    found = []
    command = processes.module("jax_edm2.converter.verify.compiling.worker")
    environment = processes.environment(**ENVIRONMENT[platform])
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        try:
            with process.stdin as pipe:  # type: ignore[union-attr]
                pipe.write(job.to_json())
            for name in job.programs:
                progress(f"compiling the {name} for {target.text}")
                line = process.stdout.readline()  # type: ignore[union-attr]
                if not line:
                    process.wait()
                    said.seek(0)
                    raise VerifyError(_why(process.returncode, said.read(), target))
                answer = json.loads(line)
                if "program" not in answer:
                    raise VerifyError(f"{target.text}: {answer['error']}")
                found.append(estimate_of(answer, job, target))
        finally:
            process.kill()
    return found


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _why(code: int, said: str, target: Target) -> str:
    if "libtpu_lockfile" in said:
        return f"{target.text}: another process holds libtpu (its lock is libtpu_lockfile in the temporary folder)"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{target.text}: the process that compiles ended with {ended}: {' '.join(last.split())[:200]}"


def estimate_of(answer: dict[str, Any], job: Job, target: Target) -> Estimate:
    """Of what the worker says of a program."""
    program = answer["program"]
    evaluations = 2 * job.steps - 1 if program == SAMPLER else 1
    return Estimate(
        program, answer.get("error"), answer.get("seconds", 0.0), answer.get("memory") or {}, answer.get("cost") or {},
        answer.get("counts") or {}, evaluations, target, job,
    )  # fmt: skip


def too_large(found: Estimate) -> str | None:
    """One line for a program that does not fit."""
    if found.error is not None or found.fits:
        return None
    device = found.target.device
    return (
        f"the {found.program} needs {found.bytes / 1e9:.1f} GB on each chip at batch {found.job.batch}, and "
        f"{device.name} has {device.memory / 1e9:.0f}; about {found.largest_batch} images would fit"
    )
