"""What any denoiser can be asked for, measured against a truth file: its outputs, its derivative, its trajectory."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jax_edm2.settings import noise_levels

from ...errors import ConverterError
from ..cases import Case, make_case
from ..metrics import difference, psnr
from ..outcome import Findings, Progress
from ..shapes import DERIVATIVE, OUTPUTS, SAMPLE
from ..truth import Truth
from ..verdict import Tolerance, judge


class Denoiser(Protocol):
    """A `Candidate`, or a `Ported`."""

    def derive(self, case: Case) -> Any:
        """The gradient by the noise: see `derivative`."""


class Denoising(ABC):
    """Subclasses say how the network is run forward, and how a trajectory is."""

    def __init__(self, candidate: Denoiser, truth: Truth, tolerance: Tolerance, findings: Findings, progress: Progress):
        self.progress = progress
        self.candidate, self.truth, self.tolerance, self.findings = candidate, truth, tolerance, findings
        self.config, self.plan, self.errors = truth.config, truth.plan, truth.facts.errors

    @abstractmethod
    def forward(self, name: str, case: Case):
        """Measure forward passes of one batch, which has this name in the truth."""

    @abstractmethod
    def states(self) -> list[np.ndarray]:
        """The states of the trajectory."""

    @contextlib.contextmanager
    def crash(self, where: str) -> Iterator[None]:
        """What JAX raises in the body is a finding, not an end."""
        try:
            yield
        except (KeyboardInterrupt, MemoryError, ConverterError):
            raise
        except Exception as error:
            self.findings.crashes.append((where, raising(error)))

    def derivative(self):
        for seed in self.plan.seeds:
            case, key = f"seed{seed}", f"{DERIVATIVE}/seed{seed}"
            found = difference(
                np.asarray(self.candidate.derive(make_case(self.config, self.plan, seed)), np.float64), self.truth[key]
            )
            torch = self.errors[DERIVATIVE][key]
            name = f"of D by the noise, {case}"
            measured = judge(DERIVATIVE, case, name, found, torch["error"], self.tolerance, torch["condition"])
            self.findings.derivative.append(measured)

    def trajectory(self):
        sigmas = noise_levels(self.plan.steps)
        exact, errors = self.truth["trajectory"], self.errors["trajectory"]
        for i, x in enumerate(self.states()):
            name = f"sigma {sigmas[i]:.4g}"
            found = difference(x, exact[i])
            self.findings.trajectory.append(judge("trajectory", "", name, found, errors[i], self.tolerance))
        self.findings.psnr = psnr(x, exact[-1])
        torch = {"PyTorch": self.truth[SAMPLE]} if SAMPLE in self.truth.names else {}
        ends = {"truth": exact[-1], **torch, "JAX": x}
        self.findings.samples = {name: np.asarray(end[0], np.float32) for name, end in ends.items()}
        self.findings.sigmas = sigmas

    def outputs(self, kind: str, case: str, run: Callable[[], tuple[Any, ...]]):
        """Of the network compiled as a whole, which `run` runs: D, and logvar if it has one."""
        with self.crash(f"{case}: the {kind} network"):
            for output, value in zip(OUTPUTS, run(), strict=False):
                found = difference(np.asarray(value, np.float64), self.truth[f"{case}/{output}"])
                expected = self.errors[case]["outputs"][output]
                self.note(kind, case, output, found, expected["error"], expected["condition"])

    def note(self, kind, case, name, found, torch_error, condition, problem=None):
        measured = judge(kind, case, name, found, torch_error, self.tolerance, condition, problem)
        self.findings.forward.append(measured)


def raising(error: Exception) -> str:
    """What is said of an exception in the midst of computing."""
    return f"raised {type(error).__name__}: {' '.join(str(error).split()):.200}"
