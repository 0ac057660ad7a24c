"""Deterministic sampling with the second-order Heun method (arXiv 2206.00364, Algorithm 1 without churn)."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax


def noise_levels(
    num_steps: int = 32, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """The schedule sigma_0 > ... > sigma_{N-1} and a final 0, length num_steps + 1 (Eq. 5)."""
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(hi + i / max(num_steps - 1, 1) * (lo - hi)) ** rho for i in range(num_steps)] + [0.0]


def heun_states(
    denoise: Callable[[jax.Array, float], jax.Array], noise: jax.Array, sigmas: Sequence[float]
) -> Iterator[jax.Array]:
    """x at every noise level, from unit noise [N, C, H, W] times sigmas[0] to the sample; denoise(x, sigma) -> D."""
    x = noise * sigmas[0]
    yield x
    for sigma, after in itertools.pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (after - sigma) * slope
        if after == 0:
            x = euler
        else:
            corrected = (euler - denoise(euler, after)) / after
            x = x + (after - sigma) * (slope + corrected) / 2
        yield x
