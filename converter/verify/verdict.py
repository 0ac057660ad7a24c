"""The rule that decides whether a result agrees with the truth, and what the decisions add up to.

A result x agrees where E = |x - truth| / |truth| <= max(min(max(k E_PyTorch, floor), ceiling), rounding condition),
its fitted scale is 1 within the same bound, and its shape, dtype and pattern of finite values are the truth's. The
condition number is the truth's own (see `conditioning`): it decides where PyTorch may have had better luck than JAX,
as at the norm of a single channel, which is a sign.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from jax_edm2.config import EDM2Config

from .metrics import Difference
from .taps import Tap, tap_of_parameter
from .taps import taps as all_taps

AGREES, DISAGREES, INCONCLUSIVE = "agrees", "disagrees", "inconclusive"
MEASURED = "measured"  # nothing was compared: throughput alone was asked for
EXIT_CODES = {AGREES: 0, DISAGREES: 1, INCONCLUSIVE: 3, MEASURED: 0}


@dataclass(frozen=True)
class Tolerance:
    """Of one precision. The floors are about three times the errors that correct runs showed: see BENCHMARKS.md."""

    k: float
    isolated: float
    accumulated: float
    gradient: float
    trajectory: float
    training: float
    rounding: float  # relative, of one operation; times the condition number it is what rounding explains
    ceiling: float = 10.0  # in floors: a bad reference must not excuse a bad candidate

    def floor(self, kind: str) -> float:
        return {
            "isolated": self.isolated,
            "accumulated": self.accumulated,
            "compiled": self.accumulated,
            "folded": self.accumulated,
            "gradient": self.gradient,
            "step": self.gradient,
            "derivative": self.gradient,
            "trajectory": self.trajectory,
            "training": self.training,
        }[kind]

    def highest(self, kind: str) -> float:
        """What no error of PyTorch's may raise the limit above."""
        return self.floor(kind) * self.ceiling

    def limit(self, kind: str, torch_error: float, condition: float = 0.0) -> float:
        scaled = self.k * torch_error if math.isfinite(torch_error) else 0.0
        return max(min(max(scaled, self.floor(kind)), self.highest(kind)), self.rounding * condition)


TOLERANCES = {
    "float32": Tolerance(4, 3e-6, 6e-6, 2e-5, 2e-5, 2e-5, 8e-7),
    "high on TPU": Tolerance(4, 3e-5, 6e-5, 2e-4, 2e-4, 2e-4, 8e-6),
    "default on TPU": Tolerance(4, 1.2e-2, 3e-2, 1e-1, 1e-1, 1e-1, 3e-3),
    "tf32": Tolerance(3, 1.1e-3, 3e-3, 1e-2, 1e-2, 1e-2, 3e-4),
    "float16": Tolerance(3, 2e-3, 5e-3, 2e-2, 2e-2, 2e-2, 5e-4),
    "bfloat16": Tolerance(3, 1.6e-2, 4e-2, 1.6e-1, 1.6e-1, 1.6e-1, 4e-3),
}


def tolerance_on(platform: str, precision: str) -> Tolerance:
    """What is allowed in a precision on cpu, gpu or tpu, where the same words of JAX's mean other products.

    Strict float32 is as good everywhere: six products of bfloat16 are nearer to the truth than one of float32.
    """
    if platform == "tpu" and f"{precision} on TPU" in TOLERANCES:
        return TOLERANCES[f"{precision} on TPU"]
    if precision in ("high", "default"):
        return TOLERANCES["float32" if platform == "cpu" else "tf32"]
    return TOLERANCES[precision]


MARGIN = 3.0  # of a golden: what is allowed, in what was measured
LARGEST_MEASURED = 1e-3  # float32 is never as far from the truth: see BENCHMARKS.md
KINDS = ("accumulated", "compiled", "gradient", "trajectory", "training")  # that a golden has


def tolerance_of(measured: dict[str, float]) -> Tolerance:
    """What a golden allows: MARGIN times what was measured of each of KINDS, and nothing else."""
    forward = MARGIN * max(measured["accumulated"], measured["compiled"])
    return Tolerance(
        k=0.0,
        isolated=forward,
        accumulated=forward,
        gradient=MARGIN * measured["gradient"],
        trajectory=MARGIN * measured["trajectory"],
        training=MARGIN * measured["training"],
        rounding=0.0,
        ceiling=1.0,
    )


@dataclass(frozen=True)
class Measurement:
    """One result beside the truth. kind: a name that `Tolerance.floor` knows."""

    kind: str
    case: str  # seed0, ...
    name: str  # of a tap, parameter or state
    difference: Difference
    torch_error: float
    limit: float
    condition: float = 0.0  # how many times a relative rounding error of every operation is found here
    problem: str | None = None  # why it fails, where that is not its error

    @property
    def agrees(self) -> bool:
        return self.failure is None

    @property
    def margin(self) -> float:
        """The error as a share of what is allowed; infinite where something else is wrong."""
        d = self.difference
        return math.inf if self.problem or d.problem else max(d.error, abs(d.scale - 1)) / self.limit

    @property
    def failure(self) -> str | None:
        """Why this does not agree, in words, or None."""
        d = self.difference
        if self.problem or d.problem:
            return self.problem or d.problem
        if not d.error <= self.limit:
            return f"error {d.error:.1e}, allowed {self.limit:.1e} (PyTorch has {self.torch_error:.1e})"
        if not abs(d.scale - 1) <= self.limit:
            return f"scaled by {d.scale:.7g}"
        return None


def judge(
    kind: str,
    case: str,
    name: str,
    found: Difference,
    torch_error: float,
    tolerance: Tolerance,
    condition: float = 0.0,
    problem: str | None = None,
) -> Measurement:
    limit = tolerance.limit(kind, torch_error, condition)
    return Measurement(kind, case, name, found, torch_error, limit, condition, problem)


@dataclass(frozen=True)
class Guilty:
    """A block whose inputs are good and whose output is bad, and the first bad operation in it."""

    scope: str
    operation: str
    why: str


def guilty(
    config: EDM2Config, measurements: Iterable[Measurement], parameters: Iterable[tuple[str, str]]
) -> list[Guilty]:
    """Who is to blame, in the order of computation, one operation for each block.

    A block's inputs are the truth in isolated measurements, so whatever fails there is its own fault.
    parameters: names of parameters that differ, and how.
    """
    order = {tap: i for i, tap in enumerate(all_taps(config))}
    found: dict[Tap, str] = {}
    for name, why in parameters:
        found.setdefault(tap_of_parameter(name, config), f"{name} {why}")
    for m in measurements:
        if m.kind == "isolated" and not m.agrees:
            scope, _, operation = m.name.rpartition("/")
            found.setdefault(Tap(scope, operation), m.failure or "")
    first: dict[str, Guilty] = {}
    for tap in sorted(found, key=lambda tap: order.get(tap, len(order))):
        first.setdefault(tap.scope, Guilty(tap.scope, tap.operation, found[tap]))
    return list(first.values())
