"""What a verification can be asked for: a type for each way. (Goldens need no request: see `golden.check`.)"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jax_edm2.config import EDM2Config

from .. import processes
from ..errors import ConverterError
from ..flops import multiply_accumulates
from .cases import HELD, Plan
from .truth import Truth

STEPS, FEWER = 32, 10  # of the trajectory
LARGE = 75e9  # multiply-accumulates of one evaluation: XS has 45e9, S 101e9


class VerifyError(ConverterError):
    """A verification that cannot be done as asked."""


@dataclass(frozen=True)
class Port:
    """Anybody's port of a network: a function that denoises.

    denoise(x, sigma, labels): D, or (D, logvar), in JAX, of x [N, C, H, W] and sigma [N] in float32, and labels, one
    for each image as a vector [N, label_dim] of zeros and a 1, or of zeros for none; None of a network without labels.

    D [N, C, H, W] and logvar, N values, in float32. name: in reports.
    """

    name: str
    denoise: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class FromSnapshot:
    """PyTorch computes the truth of a network, and JAX is judged by it.

    snapshot: any file of a network's: a snapshot, a training state or a checkpoint. weights, config_from: which network
    of a training state, and what it is configured like, for whichever of the files is one (`open_network`).
    checkpoint: JAX's; None converts the snapshot in memory. device: of JAX; auto, cpu, gpu or tpu. torch_device: of
    PyTorch in the precision that is judged; cpu or cuda (see `torch_device`). sweep: throughput of more and more images
    at once. held: bytes of weights that a process holds. emulate: JAX is on a CPU, and multiplies as that accelerator.
    port: somebody else's denoiser, which is judged in place of our network.
    """

    snapshot: Path
    plan: Plan = field(default_factory=Plan)
    reference: str = "torch_ref"
    checkpoint: Path | None = None
    device: str = "auto"
    torch_device: str = "cpu"
    sweep: bool = False
    held: float = HELD
    weights: str | None = None
    config_from: str | None = None
    emulate: Literal["tpu", "gpu"] | None = None
    port: Port | None = None


@dataclass(frozen=True)
class FromTruth:
    """JAX is judged by a truth file that there is, whose plan says how. Needs no PyTorch.

    checkpoint: JAX's, or None, which converts the snapshot in memory: one of both is needed, or a port. The
    others are as in FromSnapshot; sweep needs the snapshot.
    """

    truth: Path
    checkpoint: Path | None = None
    snapshot: Path | None = None
    device: str = "auto"
    sweep: bool = False
    held: float = HELD
    weights: str | None = None
    config_from: str | None = None
    emulate: Literal["tpu", "gpu"] | None = None
    port: Port | None = None


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


def usual_steps(config: EDM2Config, torch_device: str) -> int:
    """Of the trajectory; fewer if the network is large: most of the time would go there."""
    if torch_device != "cpu":
        return STEPS
    return FEWER if multiply_accumulates(config) > LARGE else STEPS
