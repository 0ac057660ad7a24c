"""What a worker is asked to time, and the names of the ways of running a network."""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

EAGER, COMPILED = "PyTorch eager", "PyTorch torch.compile"
LOADED, FOLDED = "JAX as loaded", "JAX folded"
SAMPLING = {"torch": "PyTorch sampling", "jax": "JAX sampling"}  # whole trajectories, of jax_edm2.sample as one program
MEMORY, CEILING = "memory", "ceiling"  # figures: what may be asked for besides ways
STEPS = 32  # of the Heun sampler

Run = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What is timed, the same for both frameworks."""

    snapshot: str
    batch: int
    precision: str
    device: str
    steps: int = STEPS  # of sampling
    weights: str | None = None  # which network, where `snapshot` is a training state
    config_from: str | None = None


class Framework(Protocol):
    """One framework with a job's network and inputs on its device."""

    def ways(self) -> dict[str, Callable[[], Run]]:
        """By name: what builds a way of running the network, and returns what runs it once."""

    def figures(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """MEMORY: {kind: device or process, peak_bytes}; CEILING: {flop_per_second} of products of matrices."""


def process_memory() -> dict[str, Any]:
    return {"kind": "process", "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
