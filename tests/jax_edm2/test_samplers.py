"""Samplers beside NVlabs': orders, limits, statistics, and plain loops in numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_edm2.samplers import ancestral, dpmpp_2m, dpmpp_2m_sde, rk4
from jax_edm2.sampling import euler
from jax_edm2.settings import noise_levels


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def gaussian(x, sigma):
    """The denoiser of data that is normal with standard deviation 0.5: its trajectories are known."""
    return x * (0.25 / (0.25 + sigma**2))


def mixture(x, sigma):
    """Of data that is -1 or 1, give or take 0.3: its trajectories bend."""
    return (0.09 * x + sigma**2 * jnp.tanh(x / (0.09 + sigma**2))) / (0.09 + sigma**2)


def unit_noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


SIGMAS = noise_levels(9)
with jax.enable_x64(True):
    NOISE = unit_noise(5, 1, 1, 2)
    STEPS = unit_noise(8, *NOISE.shape, seed=1)  # noise for each step of SIGMAS


def test_rk4_is_of_fourth_order():
    """Down to the last level above 0: from there it is Euler's step."""
    errors = []
    for steps in (48, 96):
        sigmas = noise_levels(steps)[:-1]
        exact = NOISE * 80 * math.hypot(sigmas[-1], 0.5) / math.hypot(80, 0.5)
        errors.append(float(jnp.abs(rk4(gaussian, NOISE, sigmas) - exact).max()))
    assert errors[1] < 2e-6  # measured: 6.6e-7
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)  # measured: 16.7
    sigmas = noise_levels(8)
    np.testing.assert_array_equal(
        rk4(gaussian, NOISE, sigmas), gaussian(rk4(gaussian, NOISE, sigmas[:-1]), np.float64(sigmas[-2]))
    )


def test_rk4_evaluates_where_its_table_says():
    seen = []

    def denoise(x, sigma):
        jax.debug.callback(lambda value: seen.append(float(value)), sigma, ordered=True)
        return gaussian(x, sigma)

    jax.block_until_ready(rk4(denoise, NOISE, [4.0, 2.0, 0.0]))
    jax.effects_barrier()
    assert seen == [4.0, 3.0, 3.0, 2.0, 2.0]


@pytest.mark.parametrize("denoise", [gaussian, mixture])
def test_without_noise_they_are_the_deterministic_ones(denoise):
    np.testing.assert_allclose(
        ancestral(denoise, NOISE, SIGMAS, None, eta=0), euler(denoise, NOISE, SIGMAS), rtol=1e-12
    )
    sde = dpmpp_2m_sde(denoise, NOISE, SIGMAS, None, eta=0)
    np.testing.assert_array_equal(sde, dpmpp_2m(denoise, NOISE, SIGMAS))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_is_the_loop_of_ddim(eta):
    """In DDIM's own variables (Eqs. 12 and 16 of arXiv 2010.02502): its alpha is 1 / (1 + sigma^2), its x is scaled."""
    alphas = 1 / (1 + np.square(SIGMAS))
    x = math.sqrt(alphas[0]) * 80 * np.asarray(NOISE)
    for i, (alpha, after) in enumerate(itertools.pairwise(alphas)):
        x0 = np.asarray(mixture(x / math.sqrt(alpha), SIGMAS[i]))
        epsilon = (x - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)
        std = eta * math.sqrt((1 - after) / (1 - alpha)) * math.sqrt(1 - alpha / after)
        x = math.sqrt(after) * x0 + math.sqrt(1 - after - std**2) * epsilon
        x = x + std * (np.asarray(STEPS[i]) if i < len(STEPS) else 0)
    np.testing.assert_allclose(ancestral(mixture, NOISE, SIGMAS, STEPS, eta), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_dpmpp_sde_is_a_plain_loop(eta):
    x, last, before = 80 * np.asarray(NOISE), None, None
    for i, (sigma, after) in enumerate(itertools.pairwise(SIGMAS[:-1])):
        denoised = np.asarray(mixture(x, sigma))
        h = math.log(sigma) - math.log(after)
        gain = 1 - math.exp(-h - eta * h)
        x = math.exp(-h - eta * h) * x + gain * denoised
        if last is not None:
            x = x + 0.5 * gain * (h / before) * (denoised - last)
        x = x + after * math.sqrt(1 - math.exp(-2 * eta * h)) * np.asarray(STEPS[i])
        last, before = denoised, h
    ours = dpmpp_2m_sde(mixture, NOISE, SIGMAS, STEPS, eta)
    np.testing.assert_allclose(ours, mixture(x, SIGMAS[-2]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sampler", "bias"), [(ancestral, 0.961), (dpmpp_2m_sde, 1.0)])
def test_samples_have_the_variance_of_the_data(sampler, bias):
    """20,000 numbers of standard deviation 0.5, whose estimate has one of 0.5 % itself."""
    noise, sigmas = unit_noise(200, 1, 10, 10), noise_levels(150)
    drawn = sampler(gaussian, noise, sigmas, unit_noise(149, *noise.shape, seed=2))
    assert float(drawn.std()) == pytest.approx(0.5 * bias, rel=0.015)
    assert abs(np.corrcoef(drawn.ravel(), noise.ravel())[0, 1]) < 0.03  # none of the first noise is left


def test_ancestral_sampling_converges_to_the_data():
    """At first order: the variance follows from that of a step to that of the next, and 150 steps are 3.9 % off."""
    deviations = []
    for steps in (150, 300):
        sigmas, variance = noise_levels(steps), 80.0**2
        for sigma, end in itertools.pairwise(sigmas):
            kept = (end / sigma) ** 2
            variance = (kept + (1 - kept) * 0.25 / (0.25 + sigma**2)) ** 2 * variance + end**2 * (1 - kept)
        deviations.append(1 - math.sqrt(variance) / 0.5)
    assert deviations[0] == pytest.approx(0.0393, rel=0.05)
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.05)


def test_one_step_is_the_denoised_image():
    for sampler in (rk4, lambda *given: ancestral(*given, None), lambda *given: dpmpp_2m_sde(*given, STEPS[:0])):
        np.testing.assert_allclose(sampler(gaussian, NOISE, [80.0, 0.0]), gaussian(80 * NOISE, 80.0), rtol=1e-9)


def test_the_network_is_traced_once():
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    for sampler, noises in ((rk4, ()), (ancestral, (STEPS,)), (dpmpp_2m_sde, (STEPS,))):
        jax.jit(lambda noise, *noises, of=sampler: of(denoise, noise, SIGMAS, *noises))(NOISE, *noises)
        assert len(calls) == 1
        calls.clear()


def test_what_they_refuse():
    with pytest.raises(ValueError, match=r"take step_noise \[8, N, C, H, W\], not 0 of them"):
        ancestral(gaussian, NOISE, SIGMAS, None)
    with pytest.raises(ValueError, match=r"take step_noise \[0, N, C, H, W\], not 8 of them"):
        dpmpp_2m_sde(gaussian, NOISE, SIGMAS, STEPS, eta=0)
    with pytest.raises(ValueError, match=r"eta must be 0 to 1, not 1\.5"):
        ancestral(gaussian, NOISE, SIGMAS, STEPS, eta=1.5)
    with pytest.raises(ValueError, match="eta must be 0 or more, not -1"):
        dpmpp_2m_sde(gaussian, NOISE, SIGMAS, STEPS, eta=-1)
