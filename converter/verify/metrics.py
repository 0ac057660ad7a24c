"""How far an array is from the truth."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """x against truth, both as float64. `problem` is set, and no number, where they cannot be compared."""

    error: float = math.nan  # |x - truth| / |truth|, Euclidean norms over all elements; |x| where the truth is 0
    scale: float = math.nan  # fitted scale <x, truth> / <truth, truth>
    cosine: float = math.nan  # reported, never judged: it passes wrong constants
    elementwise: float = math.nan  # largest relative error of an element; reported, never judged
    size: float = math.nan  # root mean square of the truth
    problem: str | None = None


def difference(x: np.ndarray, truth: np.ndarray, norm: float | None = None) -> Difference:
    """Compare x with the truth. norm: stands in for |truth|, where that says nothing of the size of rounding errors."""
    if x.shape != truth.shape:
        return Difference(problem=f"has shape {list(x.shape)}, should be {list(truth.shape)}")
    x, truth = np.asarray(x, np.float64).ravel(), np.asarray(truth, np.float64).ravel()
    finite = np.isfinite(x)
    if not finite.all():
        where = np.flatnonzero(~finite)
        return Difference(problem=f"is not finite at {where.size} of {x.size} elements, the first of them {x[where[0]]}")
    apart = x - truth
    square_x, square_truth, inner = float(x @ x), float(truth @ truth), float(x @ truth)
    size = math.sqrt(square_truth) if norm is None else norm
    error = math.sqrt(float(apart @ apart))
    np.abs(apart, out=apart)
    nonzero = truth != 0
    elementwise = float(np.max(apart[nonzero] / np.abs(truth[nonzero]), initial=0))
    return Difference(
        error / size if size else error,
        inner / square_truth if square_truth else 1.0,
        inner / math.sqrt(square_x * square_truth) if square_x and square_truth else 1.0,
        elementwise,
        math.sqrt(square_truth / max(truth.size, 1)),
    )


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, the peak being the range of the truth; infinite for equal arrays."""
    mean_square = float(np.mean(np.square(np.asarray(x, np.float64) - truth)))
    peak = float(np.max(truth) - np.min(truth)) or 1.0
    return 10 * math.log10(peak**2 / mean_square) if mean_square else math.inf
