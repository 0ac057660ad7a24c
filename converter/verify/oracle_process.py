"""The process in which PyTorch computes a truth file, while this one may do something else."""

import contextlib
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.files import Target, whole_or_nothing

from .. import processes
from ..errors import ProcessFailed
from ..opening import open_side
from .cases import Plan
from .request import FromSnapshot, VerifyError
from .taps import DENOISED, EMBEDDING, LOG_VARIANCE, tap_sizes
from .torch_side.job import Job

# glibc gives freed memory back to the system and faults it in again at every operation, unless told not to: that is a
# third of PyTorch's time on large float64 activations.
OPENMP = {"OMP_WAIT_POLICY": "passive"}  # waiting threads leave the cores to whoever works
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
INTERRUPTED = 130


def save_truth(request: FromSnapshot, path: Target, *, overwrite: bool = False) -> int:
    """Compute a truth file that is there whole or not at all: its size in bytes.

    Raises: ConverterError, ProcessFailed, FileExistsError, OSError.
    """
    with whole_or_nothing(path, overwrite=overwrite) as temporary:
        make_truth(request, temporary)
        return temporary.stat().st_size


def make_truth(request: FromSnapshot, output: Path, meanwhile: Callable[[], None] = lambda: None):
    """Compute the truth file in a separate process, and do something else meanwhile.

    Raises: ConverterError, ProcessFailed, OSError.
    """
    _check_room(request, output.parent)
    snapshot, truth = map(os.path.abspath, (request.snapshot, output))  # it may run elsewhere
    config_from = request.config_from
    if config_from is not None and os.path.exists(config_from):
        config_from = os.path.abspath(config_from)
    job = Job(
        snapshot, truth, request.plan, request.reference, request.torch_device, request.held, request.weights,
        config_from,
    )  # fmt: skip
    with _oracle(request.reference) as process:
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
    command = processes.module("jax_edm2.converter.verify.torch_side.oracle")
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
    if "derivative" in plan.checks:
        values += plan.batch * len(plan.seeds) * config.img_channels * config.img_resolution**2
    if "gradients" in plan.checks:  # in float32, the new value and its average
        values += 3 * sum(map(math.prod, expected_tree(config).values())) // 2
    if "training" in plan.checks:  # of a state with two averages
        values += 5 * sum(map(math.prod, expected_tree(config).values())) // 2
    return 8 * values


def _training_bytes(config: EDM2Config, plan: Plan) -> int:
    """Of a training in float64: parameters, gradients, two moments and two averages."""
    return 6 * 8 * sum(map(math.prod, expected_tree(config).values())) * ("training" in plan.checks)


def _memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_room(request: FromSnapshot, folder: Path):
    """Raises: VerifyError if what is to be written to a folder, or held in memory, does not fit."""
    with open_side(request.snapshot, request.weights, request.config_from) as snapshot:
        needed, free = truth_bytes(snapshot.config, request.plan), shutil.disk_usage(folder).free
    if (held := _training_bytes(snapshot.config, request.plan)) > (memory := _memory()):
        raise VerifyError(
            f"training takes {held / 1e9:.1f} GB of memory for a state in float64, and this machine has "
            f"{memory / 1e9:.1f}: leave it out of --checks"
        )
    if needed > free:
        raise VerifyError(
            f"{folder}: the truth takes {needed / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free: make room, "
            "try a smaller --batch, or another folder (TMPDIR, for temporary files)"
        )
