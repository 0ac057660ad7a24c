"""Deterministic sampling with the second-order Heun method (arXiv 2206.00364, Algorithm 1 without churn)."""

import itertools

import torch


def noise_levels(num_steps=32, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """The schedule sigma_0 > ... > sigma_{N-1} and a final 0, as Python floats, length num_steps + 1 (Eq. 5)."""
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(hi + i / (num_steps - 1) * (lo - hi)) ** rho for i in range(num_steps)] + [0.0]


def heun(denoise, noise, sigmas):
    """Integrate from unit noise [N, C, H, W] down `sigmas`; denoise(x, sigma) -> D, with sigma a scalar tensor."""
    *_, x = heun_states(denoise, noise, sigmas)
    return x


def heun_states(denoise, noise, sigmas):
    """As `heun`, yielding x at every noise level, from the first to the last."""
    with torch.no_grad():
        x = noise * sigmas[0]
        yield x
        for sigma, after in itertools.pairwise(sigmas):
            slope = (x - denoise(x, torch.tensor(sigma))) / sigma
            euler = x + (after - sigma) * slope
            if after == 0:
                x = euler
            else:
                corrected = (euler - denoise(euler, torch.tensor(after))) / after
                x = x + (after - sigma) * (slope + corrected) / 2
            yield x
