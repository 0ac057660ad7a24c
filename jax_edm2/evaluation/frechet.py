"""The Fréchet distance of two normal distributions (Dowson and Landau 1982), which FID and FD-DINOv2 are. No jax.

d = |m - n|² + tr S + tr T - 2 tr (S^½ T S^½)^½, of means m, n and covariances S, T. The matrix under the last root is
symmetric, other than S T, whose root is usually taken: its eigenvalues are real and not below 0, and the sum of their
roots is all that the trace is.
"""

from typing import NamedTuple

import numpy as np

from jax_edm2.evaluation.moments import Statistics, rank, refuse_negative, symmetric

EPS = float(np.finfo(np.float64).eps)


class Distance(NamedTuple):
    """The value, >= 0, and how far rounding in float64 may have brought it from the distance of the same statistics.

    The error says nothing of the samples: a distance of few of them is biased upwards, and by how much depends on what
    they are of.
    """

    value: float
    error: float


def frechet_distance(one: Statistics, other: Statistics) -> Distance:
    """In float64, singular covariances too; where counts are known, no more directions count than features can span.

    Takes some seconds for 2,048 features; half of them are for the root of `other`, which is kept.
    Raises: ValueError for statistics of different sizes, or a covariance with an eigenvalue below 0 by more than
    rounding.
    """
    size = one.mean.size
    if other.mean.size != size:
        raise ValueError(f"statistics of {size} and of {other.mean.size} features have no distance")
    apart = one.mean - other.mean
    traces = float(np.trace(one.covariance) + np.trace(other.covariance))
    root = other.root
    values = np.linalg.eigvalsh(symmetric(root @ symmetric(one.covariance) @ root.T))  # ascending
    refuse_negative(values, float(np.square(one.mean).max()) * float(np.abs(other.covariance).max()))
    below, values = max(-float(values[0]), 0.0), np.maximum(values, 0.0)
    spanned = min(rank(one.count, size), rank(other.count, size))
    left_out, values = values[: size - spanned], values[size - spanned :]
    roots = np.sqrt(values)
    value = float(apart @ apart) + traces - 2 * float(roots.sum())
    # An eigenvalue that is off by `off` has a root that is off by off / (2 root), and by the root of it at most.
    off = size * EPS * float(values[-1]) + 2 * below
    each = np.minimum(off / np.maximum(2 * roots, np.sqrt(off) or 1.0), np.sqrt(off))
    error = 2 * float(each.sum() + np.sqrt(left_out).sum()) + size * EPS * (float(apart @ apart) + traces)
    return Distance(max(value, 0.0), error)
