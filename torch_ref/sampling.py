"""Samplers in PyTorch, one step after the other: the reference for jax_edm2.sampling.

denoise(x, sigma) -> D takes x [N, C, H, W] and a scalar tensor; noise is unit noise [N, C, H, W].
"""

import itertools
import math

import torch


def noise_levels(num_steps=32, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """The schedule sigma_0 > ... > sigma_{N-1} and a final 0, as Python floats (Eq. 5 of arXiv 2206.00364)."""
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(hi + i / max(num_steps - 1, 1) * (lo - hi)) ** rho for i in range(num_steps)] + [0.0]


def heun(denoise, noise, sigmas, **churn):
    """Integrate from noise down `sigmas`; for `churn` see heun_states."""
    *_, x = heun_states(denoise, noise, sigmas, **churn)
    return x


def euler(denoise, noise, sigmas, **churn):
    """Euler's method: the first half of every step of `heun`."""
    *_, x = heun_states(denoise, noise, sigmas, correct=False, **churn)
    return x


def heun_states(
    denoise, noise, sigmas, *, correct=True, S_churn=0.0, S_min=0.0, S_max=math.inf, S_noise=1.0, randn_like=None
):
    """As `heun`, yielding x at every noise level, from the first to the last (Algorithm 2 of arXiv 2206.00364).

    randn_like(x) gives the unit noise of a step that churns.
    """
    gamma = min(S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    with torch.no_grad():
        x = noise * sigmas[0]
        yield x
        for sigma, after in itertools.pairwise(sigmas):
            if S_churn > 0 and S_min <= sigma <= S_max:
                raised = sigma * (1 + gamma)
                x = x + math.sqrt(raised**2 - sigma**2) * S_noise * randn_like(x)
                sigma = raised
            slope = (x - denoise(x, torch.tensor(sigma))) / sigma
            euler = x + (after - sigma) * slope
            if after == 0 or not correct:
                x = euler
            else:
                corrected = (euler - denoise(euler, torch.tensor(after))) / after
                x = x + (after - sigma) * (slope + corrected) / 2
            yield x


def dpmpp_2m(denoise, noise, sigmas):
    """DPM-Solver++(2M) (Algorithm 2 of arXiv 2211.01095) with alpha = 1: D extrapolated half a step ahead.

    In lambda = -ln sigma, x = (sigma_next / sigma) x + (1 - e^-h) D with h the step. The last step, to sigma 0, is D.
    """
    return _dpmpp(denoise, noise, sigmas, 0, None)


def dpmpp_2m_sde(denoise, noise, sigmas, randn_like):
    """SDE-DPM-Solver++(2M) of that paper: e^-2h in place of e^-h; randn_like(x) gives the unit noise of a step."""
    return _dpmpp(denoise, noise, sigmas, 1, randn_like)


@torch.no_grad()
def _dpmpp(denoise, noise, sigmas, eta, randn_like):
    x, last, h_last = noise * sigmas[0], None, math.nan
    for sigma, after in itertools.pairwise(sigmas):
        denoised = denoise(x, torch.tensor(sigma))
        if after == 0:
            return denoised
        h = math.log(sigma / after)
        ahead = denoised if last is None else denoised + h / (2 * h_last) * (denoised - last)
        decay = math.exp(-(1 + eta) * h)
        x = decay * x + (1 - decay) * ahead
        if eta:
            x = x + after * math.sqrt(1 - math.exp(-2 * eta * h)) * randn_like(x)
        last, h_last = denoised, h
    return x


@torch.no_grad()
def rk4(denoise, noise, sigmas):
    """The classical Runge-Kutta method of dx/dsigma = (x - D) / sigma; Euler's for the last step, to sigma 0."""

    def slope(x, sigma):
        return (x - denoise(x, torch.tensor(sigma))) / sigma

    x = noise * sigmas[0]
    for sigma, after in itertools.pairwise(sigmas):
        h, first = after - sigma, slope(x, sigma)
        if after == 0:
            return x + h * first
        second = slope(x + h / 2 * first, sigma + h / 2)
        third = slope(x + h / 2 * second, sigma + h / 2)
        fourth = slope(x + h * third, after)
        x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
    return x


@torch.no_grad()
def ancestral(denoise, noise, sigmas, randn_like):
    """DDPM's posterior (Eqs. 6 and 7 of arXiv 2006.11239), in sigma; randn_like(x) gives the unit noise of a step."""
    x = noise * sigmas[0]
    for sigma, after in itertools.pairwise(sigmas):
        kept = (after / sigma) ** 2
        x = kept * x + (1 - kept) * denoise(x, torch.tensor(sigma))
        if after > 0:
            x = x + after * math.sqrt(1 - kept) * randn_like(x)
    return x


def guided(denoise, guide, weight, interval=(0.0, math.inf)):
    """The guided denoiser D_guide + weight (D - D_guide), within the noise levels (lo, hi] (arXiv 2404.07724)."""

    def guided_denoise(x, sigma):
        if weight == 1 or not interval[0] < sigma <= interval[1]:
            return denoise(x, sigma)
        return torch.lerp(guide(x, sigma), denoise(x, sigma), weight)

    return guided_denoise
