"""What a verification can be asked for: a type for each way. (Goldens need no request: see `golden.check`.)"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .. import processes
from ..errors import ConverterError
from ..flops import multiply_accumulates
from ..snapshot import read_snapshot
from .cases import HELD, Plan
from .truth import Truth

STEPS, FEWER = 32, 10  # of the trajectory
LARGE = 75e9  # multiply-accumulates of one evaluation: XS has 45e9, S 101e9


class VerifyError(ConverterError):
    """A verification that cannot be done as asked."""


@dataclass(frozen=True)
class FromSnapshot:
    """PyTorch computes the truth of a snapshot, and JAX is judged by it.

    checkpoint: JAX's; None converts the snapshot in memory. device: of JAX; auto, cpu, gpu or tpu. torch_device: of
    PyTorch in the precision that is judged; cpu or cuda (see `torch_device`). sweep: throughput of more and more images
    at once. held: bytes of weights that a process holds.
    """

    snapshot: Path
    plan: Plan = field(default_factory=Plan)
    reference: str = "torch_ref"
    checkpoint: Path | None = None
    device: str = "auto"
    torch_device: str = "cpu"
    sweep: bool = False
    held: float = HELD


@dataclass(frozen=True)
class FromTruth:
    """JAX is judged by a truth file that there is, whose plan says how. Needs no PyTorch.

    checkpoint: JAX's, or None, which converts the snapshot in memory: one of both is needed. device, sweep, held: as in
    FromSnapshot; sweep needs the snapshot.
    """

    truth: Path
    checkpoint: Path | None = None
    snapshot: Path | None = None
    device: str = "auto"
    sweep: bool = False
    held: float = HELD


Request = FromSnapshot | FromTruth


def plan_of(request: Request) -> Plan:
    """What will be run. Needs no JAX, which is to be started for this precision. Raises: TruthError."""
    if isinstance(request, FromSnapshot):
        return request.plan
    with Truth(request.truth) as truth:
        return truth.plan


def torch_device(device: str) -> str:
    """Of PyTorch: cuda where JAX may use a GPU and PyTorch sees one. device: of JAX. A separate process is asked."""
    if device == "cpu" or not Path("/dev/nvidiactl").exists():
        return "cpu"
    code = "import torch; print(torch.cuda.is_available())"
    seen = subprocess.run(processes.python(code), env=processes.environment(), capture_output=True, text=True)
    return "cuda" if seen.stdout.strip() == "True" else "cpu"


def usual_steps(snapshot: Path, torch_device: str) -> int:
    """Of the trajectory; fewer if the network is large: most of the time would go there. Raises: SnapshotError."""
    if torch_device != "cpu":
        return STEPS
    with read_snapshot(snapshot) as opened:
        return FEWER if multiply_accumulates(opened.config) > LARGE else STEPS
