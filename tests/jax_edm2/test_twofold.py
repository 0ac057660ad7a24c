import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_edm2 import twofold
from jax_edm2.twofold import Twofold

RNG = np.random.default_rng(0)
SIGMA = np.exp(RNG.uniform(-8, 8, 20000)).astype(np.float32)
FREQS = (2 * np.pi * RNG.standard_normal(20000)).astype(np.float32)
PHASES = (2 * np.pi * RNG.uniform(size=20000)).astype(np.float32)


def wide(x):
    return np.asarray(x, np.float64)


def feature(sigma, freq, phase):
    return twofold.cos(twofold.log(sigma) * Twofold.of(freq) + Twofold.of(phase))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_log_and_features_are_accurate_with_and_without_fused_arithmetic(transform):
    log = transform(twofold.log)(SIGMA)
    value = wide(log.hi) + wide(log.lo)
    np.testing.assert_allclose(value, np.log(wide(SIGMA)), rtol=0, atol=3.9e-9)  # measured: 1.3e-9
    exact = np.cos(np.log(wide(SIGMA)) * wide(FREQS) + wide(PHASES))
    np.testing.assert_allclose(transform(feature)(SIGMA, FREQS, PHASES), exact, rtol=0, atol=1.5e-7)  # measured: 7e-8
    plain = np.cos(np.log(SIGMA) * FREQS + PHASES)
    assert np.abs(plain - exact).max() > 3e-6  # what float32 does otherwise


def test_derivatives_are_those_of_the_plain_formula():
    def plain(sigma, freq, phase):
        return jnp.cos(jnp.log(sigma) * freq + phase)

    arguments = jnp.float32(2), jnp.float32(3), jnp.float32(1)
    for ours, theirs in ((feature, plain), (jax.grad(feature), jax.grad(plain))):
        gradients = jax.grad(ours, (0, 1, 2))(*arguments), jax.grad(theirs, (0, 1, 2))(*arguments)
        np.testing.assert_allclose(*gradients, rtol=4.8e-7)  # measured: 1.6e-7


def test_what_is_no_positive_normal_number_gives_what_log_gives():
    x = jnp.array([0, -1, jnp.inf, jnp.nan], jnp.float32)
    log = twofold.log(x)
    np.testing.assert_array_equal(log.hi, jnp.log(x))
    np.testing.assert_array_equal(log.lo, 0)
