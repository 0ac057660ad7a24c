"""Predictions are what FlaxDiff's own transforms make of them, and each is the inverse of its inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flaxdiff import predictors

from jax_edm2.predictions import EPSILON, SCORE, X0, V, karras
from tests.jax_edm2.test_sampling import small

ALL = {"x0": X0, "epsilon": EPSILON, "score": SCORE, "v": V, "F": karras(), "F of latents": karras(0.8)}
SIGMA = np.array([0.002, 0.5, 80.0])
THEIRS = {
    "x0": predictors.DirectPredictionTransform(),
    "epsilon": predictors.EpsilonPredictionTransform(),
    "v": predictors.VPredictionTransform(),
    "F": predictors.KarrasPredictionTransform(),
    "F of latents": predictors.KarrasPredictionTransform(0.8),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def example():
    """x0, noise, and x at every noise level."""
    x0, noise = np.random.default_rng(0).standard_normal((2, 3, 2, 4, 4))
    return x0, noise, jnp.asarray(x0 + SIGMA[:, None, None, None] * noise)


class Schedule:
    """One of FlaxDiff's in which x is alpha (x0 + sigma noise)."""

    def __init__(self, alpha):
        self.alpha = jnp.asarray(alpha)

    def get_rates(self, _step, shape):
        return self.alpha.reshape(shape), (self.alpha * SIGMA).reshape(shape)


@pytest.mark.parametrize("preserving", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_flaxdiff_makes_the_same_of_a_prediction(name, preserving):
    alpha = (1 + SIGMA**2) ** -0.5 if preserving and "F" not in name else np.ones(3)  # F has x as it is
    _, _, x = example()
    prediction = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))
    theirs, noise = THEIRS[name](alpha[:, None, None, None] * x, prediction, 0, Schedule(alpha))
    ours = ALL[name].denoised(prediction, x, SIGMA)
    assert ours.dtype == jnp.float64
    bound = 1.2e-7 if "F" in name else 1e-15  # measured: 4e-8, since they add 1e-8 to what they divide by; else 4e-16
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * np.abs(theirs).max())
    np.testing.assert_allclose(
        EPSILON.of(ours, x, SIGMA), noise, rtol=0, atol=1.5e-4 if "F" in name else 1e-12
    )  # measured: 4.7e-5, 2e-13


@pytest.mark.parametrize("name", ["x0", "epsilon", "v"])  # of F they have x0 for the target
def test_they_are_what_flaxdiff_trains_networks_to_predict(name):
    x0, noise, x = example()
    target = THEIRS[name].get_target(x0, noise, (jnp.ones((3, 1, 1, 1)), SIGMA[:, None, None, None]))
    np.testing.assert_allclose(ALL[name].of(jnp.asarray(x0), x, SIGMA), target, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_there_and_back(name):
    x0, _, x = example()
    for sigma in (*SIGMA, SIGMA):
        there = ALL[name].of(jnp.asarray(x0), x, sigma)
        np.testing.assert_allclose(ALL[name].denoised(there, x, sigma), x0, rtol=0, atol=1e-12)


def test_f_is_what_the_network_gives():
    """Between its preconditioning: F is the U-Net's output (Table 1)."""
    net, variables = small(1)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 1, 8, 8), np.float32))
    sigma, labels = jnp.asarray([0.5, 5.0], jnp.float32), jnp.eye(10, dtype=jnp.float32)[:2]

    @jax.jit
    def raw_and_denoised(x):
        scaled = x / jnp.sqrt(sigma**2 + 0.25)[:, None, None, None]
        raw = net.apply(variables, scaled, jnp.log(sigma) / 4, labels, method=lambda m, *given: m.unet(*given))
        return raw, net.apply(variables, x, sigma, labels)

    raw, denoised = raw_and_denoised(x)
    assert float(jnp.abs(raw).max()) > 0.1
    difference = jnp.abs(karras(net.config.sigma_data).of(denoised, x, sigma) - raw).max()
    assert difference < 4e-6  # measured: 1.1e-6
