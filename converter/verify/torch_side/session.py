"""What a session of PyTorch shares: the network, the truth file that its results go to, and how they get there."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from ...bars import Bar
from ...weights import Weights
from ..cases import Case, make_case
from ..truth import TruthWriter
from .job import Job
from .reference import Reference
from .taps import Visit, tapped


class Session:
    """One job's network and truth file.

    not_finite: keys of what is not finite in the truth. bar: shows how many runs of the network are done.
    """

    def __init__(self, snapshot: Weights, job: Job, truth: TruthWriter):
        self.config, self.plan, self.truth = snapshot.config, job.plan, truth
        held = (
            math.inf if {"gradients", "derivative", "training"} & {*self.plan.checks} else job.held
        )  # they are left in the parameters
        self.reference = Reference(snapshot, job.reference, job.device, held)
        self.not_finite: list[str] = []
        total = 9 * len(self.plan.seeds) * ("forward" in self.plan.checks)
        total += 3 * ("gradients" in self.plan.checks)
        total += 3 * len(self.plan.seeds) * ("derivative" in self.plan.checks)
        total += (1 + 3 * self.plan.updates) * ("training" in self.plan.checks)
        total += 2 * (2 * self.plan.steps - 1) * ("trajectory" in self.plan.checks)
        self.bar = Bar(desc="edm2-verify: PyTorch", unit="runs", total=total)

    def cases(self) -> Iterator[tuple[str, Case]]:
        """Every batch and its name."""
        for seed in self.plan.seeds:
            yield f"seed{seed}", make_case(self.config, self.plan, seed)

    def keep(self, key: str, value: np.ndarray):
        """Write to the truth file."""
        if not np.isfinite(value).all():
            self.not_finite.append(key)
        self.truth[key] = value

    def tapped(self, visit: Visit):
        """A `with` statement in which `visit` sees every tap of the network: see `taps`."""
        return tapped(self.reference.net, self.reference.namespace, self.config, visit)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """An array in the network's full precision, on its device."""
        full = torch.float64 if self.reference.raised else torch.float32
        return torch.as_tensor(array, dtype=full, device=self.reference.device)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()
