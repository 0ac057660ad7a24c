"""Mean and covariance of features, from sums in float64 that any number of processes may gather and merge. No jax."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Of a set of features: mean [D] and covariance [D, D] in float64, as NVlabs' calculate_metrics.py has them (`mu`,
    `sigma`), the covariance divided by count - 1. count: of how many; None where that is not known.

    Raises: ValueError for what cannot be the mean and covariance of anything.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    def __post_init__(self):
        for name in ("mean", "covariance"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        mean, covariance = self.mean, self.covariance
        if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
            shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
            raise ValueError(f"mean and covariance must be [D] and [D, D], not {shapes}")
        if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
            raise ValueError("mean or covariance has values that are not finite")
        if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-8 * float(np.abs(covariance).max())):
            raise ValueError("the covariance is not symmetric")
        if self.count is not None and self.count < 2:
            raise ValueError(f"{self.count} features have no covariance: two at least")

    @cached_property
    def root(self) -> np.ndarray:
        """R [D, D] with Rᵀ R the covariance. Raises: ValueError for one that is not of any features."""
        values, vectors = np.linalg.eigh(symmetric(self.covariance))
        refuse_negative(values, float(np.square(self.mean).max()))
        return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


class Moments:
    """Sums over features of `size` numbers each: count, how many; total, Σ x; outer, Σ x xᵀ, in float64.

    Nothing but these is kept, however many features there are. `+` merges what two processes gathered.
    """

    def __init__(self, size: int):
        self.size, self.count = size, 0
        self.total, self.outer = np.zeros(size), np.zeros((size, size))

    def add(self, features: Any, valid: int | None = None):
        """Take features [N, size] in; of a batch that was filled up to N, the first `valid`.

        Raises: ValueError for another shape, or values that are not finite: one would spoil all.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ValueError(f"features must be [N, {self.size}], not {list(x.shape)}")
        if valid is not None and not 0 <= valid <= len(x):
            raise ValueError(f"{valid} of {len(x)} features cannot be valid")
        x = x[:valid]
        if not np.isfinite(x).all():
            raise ValueError("features have values that are not finite")
        self.count += len(x)
        self.total += x.sum(axis=0)
        self.outer += x.T @ x

    def __add__(self, other: "Moments") -> "Moments":
        if other.size != self.size:
            raise ValueError(f"moments of {self.size} and of {other.size} numbers do not add up")
        both = Moments(self.size)
        both.count = self.count + other.count
        both.total, both.outer = self.total + other.total, self.outer + other.outer
        return both

    def packed(self) -> np.ndarray:
        """All of it as one float64 array, of which `unpacked` makes the same."""
        return np.concatenate([[self.count], self.total, self.outer.reshape(-1)])

    @classmethod
    def unpacked(cls, values: np.ndarray, size: int) -> "Moments":
        """Raises: ValueError for what is not of moments of that size."""
        values = np.asarray(values, np.float64)
        if values.shape != (1 + size + size**2,) or not np.isfinite(values).all() or values[0] < 0 or values[0] % 1:
            raise ValueError(f"these are no moments of {size} features")
        found = cls(size)
        found.count, found.total = int(values[0]), values[1 : 1 + size].copy()
        found.outer = values[1 + size :].reshape(size, size).copy()
        return found

    def statistics(self) -> Statistics:
        """Raises: ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"{self.count} features have no covariance: two at least")
        mean = self.total / self.count
        covariance = (self.outer - np.outer(mean, mean) * self.count) / (self.count - 1)
        return Statistics(mean, symmetric(covariance), self.count)


def refuse_negative(values: np.ndarray, scale: float):
    """Raises: ValueError for ascending eigenvalues below 0 by more than rounding. scale: of what was subtracted."""
    if values[0] < -1e-6 * values[-1] - 1e-10 * scale:
        raise ValueError(f"a covariance has the eigenvalue {values[0]:.3g}: it is of no features")


def symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def rank(count: int | None, size: int) -> int:
    """Of a covariance, at most. count: of features; None where that is not known."""
    return size if count is None else min(size, count - 1)
