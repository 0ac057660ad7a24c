"""Samplers beside NVlabs' own (`heun` and `euler`, in sampling.py): of higher order, and stochastic ones.

As there: functions of (denoise, noise, sigmas) that evaluate the denoiser in one place, with the numbers of every step
worked out in float64. Noise that is added comes from outside: `jax.random.normal(key, (len(sigmas) - 2, *shape))`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_edm2.method import Denoise, Method
from jax_edm2.shapes import ChurnNoise, Images


def rk4(denoise: Denoise, noise: Images, sigmas: Sequence[float]) -> Images:
    """The classical Runge-Kutta method of dx/dsigma = (x - D) / sigma (Eqs. 1 and 3 of arXiv 2206.00364).

    noise, sigmas: as for `heun`; gives [N, C, H, W] likewise, after 4 S - 3 evaluations for S steps. The last step, to
    noise level 0 where there is no slope, is Euler's, as `heun`'s is: x = D.
    """
    return rk4_method(sigmas, noise.dtype).run(denoise, noise, sigmas)


def rk4_method(sigmas: Sequence[float], dtype: Any) -> Method:
    rows: list[tuple[float, ...]] = []  # sigma, weight of the slope, how far on along it, ends the step
    for sigma, end in itertools.pairwise(sigmas):
        h = end - sigma
        if end == 0:
            rows.append((sigma, h, 0, 1))
            continue
        middle = sigma + h / 2
        rows += [(sigma, h / 6, h / 2, 0), (middle, h / 3, h / 2, 0), (middle, h / 3, h, 0), (end, h / 6, 0, 1)]

    def advance(denoise, state, row, _noises):
        x, start, total = state  # where it is evaluated, the step's start, and its end as far as slopes are known
        sigma, weight, ahead, ends = row
        slope = (x - denoise(x, sigma)) / sigma
        total = total + weight * slope
        return jnp.where(ends > 0, total, start + ahead * slope), jnp.where(ends > 0, total, start), total

    return Method(tuple(np.asarray(rows, dtype).T), lambda x: (x, x, x), advance)


def dpmpp_2m(denoise: Denoise, noise: Images, sigmas: Sequence[float]) -> Images:
    """DPM-Solver++(2M) (Algorithm 2 of arXiv 2211.01095), in the sigma schedule: S evaluations for S steps.

    noise, sigmas: as for `heun`; gives [N, C, H, W] likewise. The first step and the last, which ends at 0, are of
    first order.
    """
    return dpmpp_method(sigmas, noise.dtype, eta=0).run(denoise, noise, sigmas)


def dpmpp_2m_sde(
    denoise: Denoise, noise: Images, sigmas: Sequence[float], step_noise: ChurnNoise | None, eta: float = 1.0
) -> Images:
    """SDE-DPM-Solver++(2M) of arXiv 2211.01095: [N, C, H, W] after S evaluations for S steps.

    noise, sigmas: as for `heun`. step_noise: unit noise [S - 1, N, C, H, W], added at the end of every step but the
    last; None for eta 0. eta, 0 or more: 1 is the paper's, 0 is `dpmpp_2m`; after a step of h in ln sigma,
    1 - exp(-2 eta h) of the noise's variance is new.
    Raises: ValueError if there is another number of noises, or eta is negative.
    """
    _check(sigmas, step_noise, eta)
    return dpmpp_method(sigmas, noise.dtype, eta).run(denoise, noise, sigmas, step_noise)


def dpmpp_method(sigmas: Sequence[float], dtype: Any, eta: float) -> Method:
    rows: list[tuple[float, ...]] = []
    before = math.nan
    for sigma, end in itertools.pairwise(sigmas):
        h = math.log(sigma / end) if end > 0 else math.inf  # lambda = -ln sigma
        extrapolate = h / before / 2 if rows and end > 0 and before > 0 else 0.0  # 1 / (2 r)
        shrink = end / sigma * math.exp(-eta * h) if end > 0 else 0.0
        added = end * math.sqrt(-math.expm1(-2 * eta * h)) if end > 0 else 0.0
        rows.append((sigma, shrink, -math.expm1(-(1 + eta) * h), extrapolate, added))
        before = h

    def advance(denoise, state, row, noises):
        x, last = state
        sigma, shrink, gain, extrapolate, added, index = row
        denoised = denoise(x, sigma)
        x = shrink * x + gain * (denoised + extrapolate * (denoised - last))
        return _with_noise(x, added, index, noises), denoised

    return Method(_table(rows, dtype), lambda x: (x, x), advance)


def ancestral(
    denoise: Denoise, noise: Images, sigmas: Sequence[float], step_noise: ChurnNoise | None, eta: float = 1.0
) -> Images:
    """Ancestral sampling: [N, C, H, W] after S evaluations for S steps.

    noise, sigmas: as for `heun`. A step to sigma' goes, as `euler`, to a lower level (sigma'^2 - up^2)^(1/2), and adds
    noise up = eta sigma' (1 - sigma'^2 / sigma^2)^(1/2). With eta 1 that is the posterior of DDPM (Eqs. 6 and 7 of
    arXiv 2006.11239, with x divided by the signal rate); from there to 0, where it is `euler`, it is Eq. 16 of arXiv
    2010.02502. step_noise: unit noise [S - 1, N, C, H, W], for every step but the last; None for eta 0.
    Raises: ValueError if there is another number of noises, or eta is not 0 to 1.
    """
    _check(sigmas, step_noise, eta, largest=1)
    return ancestral_method(sigmas, noise.dtype, eta).run(denoise, noise, sigmas, step_noise)


def ancestral_method(sigmas: Sequence[float], dtype: Any, eta: float) -> Method:
    rows: list[tuple[float, ...]] = []
    for sigma, end in itertools.pairwise(sigmas):
        up = eta * end * math.sqrt(1 - (end / sigma) ** 2)
        rows.append((sigma, math.sqrt(end**2 - up**2) / sigma, up))

    def advance(denoise, state, row, noises):
        (x,) = state
        sigma, shrink, added, index = row
        return (_with_noise(shrink * x + (1 - shrink) * denoise(x, sigma), added, index, noises),)

    return Method(_table(rows, dtype), lambda x: (x,), advance)


def _check(sigmas: Sequence[float], step_noise: Any, eta: float, largest: float = math.inf):
    if not 0 <= eta <= largest or math.isinf(eta):
        raise ValueError(f"eta must be 0 {f'to {largest:g}' if math.isfinite(largest) else 'or more'}, not {eta:g}")
    wanted = step_draws(sigmas) if eta > 0 else 0
    if wanted != (found := 0 if step_noise is None else len(step_noise)):
        raise ValueError(f"this schedule and eta take step_noise [{wanted}, N, C, H, W], not {found} of them")


def step_draws(sigmas: Sequence[float]) -> int:
    """How many steps add noise: all but the last."""
    return len(sigmas) - 2


def _table(rows: list[tuple[float, ...]], dtype: Any) -> tuple[np.ndarray, ...]:
    """Columns, and which noise each step adds: the last adds 0 times any."""
    index = np.arange(len(rows), dtype=np.int32).clip(max=max(len(rows) - 2, 0))
    return *np.asarray(rows, dtype).T, index


def _with_noise(x: Any, added: Any, index: Any, noises: Any) -> Any:
    return x if noises is None or not len(noises) else x + added * noises[index]
