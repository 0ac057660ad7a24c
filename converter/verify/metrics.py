"""How far an array is from the truth."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK = 2**15  # elements at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Difference:
    """x against truth, in float64. `problem` is set, and no number, where they cannot be compared."""

    error: float = math.nan  # |x - truth| / |truth|, Euclidean norms over all elements; |x| where the truth is 0
    scale: float = math.nan  # fitted scale <x, truth> / <truth, truth>; its distance from 1 is at most the error
    cosine: float = math.nan  # reported, never judged: it passes wrong constants
    elementwise: float = math.nan  # largest relative error of an element (absolute where the truth is 0); never judged
    size: float = math.nan  # root mean square of the truth
    problem: str | None = None


def difference(x: np.ndarray, truth: np.ndarray, norm: float | None = None) -> Difference:
    """Compare x with the truth. norm: stands in for |truth|, where that says nothing of the size of rounding errors."""
    if x.shape != truth.shape:
        return Difference(problem=f"has shape {list(x.shape)}, should be {list(truth.shape)}")
    x, truth = np.ravel(x), np.ravel(truth)
    apart = square_x = square_truth = inner = elementwise = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, x.size, CHUNK):
            a = x[start : start + CHUNK].astype(np.float64)
            b = truth[start : start + CHUNK].astype(np.float64)
            square_x += float(a @ a)
            square_truth += float(b @ b)
            inner += float(a @ b)
            a -= b
            apart += float(a @ a)
            np.divide(a, b, out=a, where=b != 0)
            elementwise = max(elementwise, float(np.fmax.reduce(np.abs(a, out=a))))
    if not math.isfinite(square_x):
        return Difference(problem=_not_finite(x))
    size = math.sqrt(square_truth) if norm is None else norm
    return Difference(
        math.sqrt(apart) / size if size else math.sqrt(apart),
        1 + (inner - square_truth) / (math.sqrt(square_truth) * size) if square_truth else 1.0,
        inner / math.sqrt(square_x * square_truth) if square_x and square_truth else 1.0,
        elementwise,
        math.sqrt(square_truth / max(truth.size, 1)),
    )


def _not_finite(x: np.ndarray) -> str:
    where = np.flatnonzero(~np.isfinite(x))
    if not where.size:
        return "has values whose squares overflow"
    return f"is not finite at {where.size} of {x.size} elements, the first of them {x[where[0]]}"


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the range of the truth; infinite for equal arrays."""
    mean_square = float(np.mean(np.square(np.asarray(x, np.float64) - truth)))
    peak = float(np.max(truth) - np.min(truth)) or 1.0
    return 10 * math.log10(peak**2 / mean_square) if mean_square else math.inf


def gradient_norm(name: str, sizes: dict[str, float]) -> float | None:
    """What a gradient's error is measured against, if not the gradient itself.

    A gain's gradient is one number, a sum in which large terms cancel by chance: its size says nothing of its rounding
    error. The root mean square over all gains' gradients does. sizes: root mean squares of the true gradients.
    """
    if not name.endswith("_gain"):
        return None
    gains = [size for other, size in sizes.items() if other.endswith("_gain")]
    return max(sizes[name], math.sqrt(sum(size**2 for size in gains) / len(gains)))


def training_norm(key: str, parameters: Iterable[str], truth: Any) -> float | None:
    """Likewise of what a training makes of a gain: training/PART/NAME of a truth file, or of a golden."""
    part, _, name = key.rpartition("/")
    if not name.endswith("_gain"):
        return None
    gains = (other for other in parameters if other.endswith("_gain"))
    return gradient_norm(name, {other: float(abs(np.ravel(truth[f"{part}/{other}"])[0])) for other in gains})
