"""Velocities of flow matching from denoisers, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_edm2
from jax_edm2.bridges import flow
from jax_edm2.ops import over
from tests.support.networks import relative_error

MEAN, STD = 0.3, 0.5
X = jax.random.normal(jax.random.key(0), (3, 1, 4, 4))
TIMES = [0.0, 1e-3, 1 / 81, 0.3, 0.5, 0.7, 0.99, 0.9999, 1.0]


def denoise(x, sigma):
    """D of data that are N(MEAN, STD^2)."""
    sigma = over(x, sigma)
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact(x, t):
    """E[x1 - x0 | x_t = x] of the same data."""
    t = np.asarray(t, np.float64).reshape(-1, 1, 1, 1)
    x = np.asarray(x, np.float64)
    return MEAN + (t * STD**2 - (1 - t)) * (x - t * MEAN) / ((1 - t) ** 2 + t**2 * STD**2)


@pytest.mark.parametrize("t", TIMES)
def test_velocity_is_the_mean_of_x1_minus_x0(t):
    v = flow.velocity(denoise, known=(1e-3, 1e6))
    found = v(X, t)
    np.testing.assert_allclose(found, exact(X, np.float32(t)), atol=2e-4)  # measured: 5e-5, at 0.9999
    np.testing.assert_array_equal(v(X, jnp.full(3, t)), found)


def test_beyond_the_known_noise_levels_denoiser_and_score_are_held():
    v = flow.velocity(denoise)
    np.testing.assert_allclose(v(X, 0.0), denoise(80 * X, 80.0) - X, rtol=1e-6)
    np.testing.assert_allclose(v(X, 0.001), (denoise(80 * X / 0.999, 80.0) - X) / 0.999, rtol=1e-5)
    np.testing.assert_allclose(v(X, 1.0), X, rtol=1e-6)
    np.testing.assert_allclose(v(X, 0.999), exact(X, np.float32(0.999)), atol=1e-4)  # measured: 3e-5


def test_each_image_has_a_time_of_its_own():
    v, times = flow.velocity(denoise), jnp.array([0.0, 0.4, 1.0])
    each = jnp.concatenate([v(X[i : i + 1], float(times[i])) for i in range(3)])
    np.testing.assert_allclose(v(X, times), each, rtol=1e-6)


def test_the_derivative_in_t_is_that_of_the_velocity():
    """MeanFlow and consistency models need it; where both formulas meet too."""
    v = flow.velocity(denoise)
    for t in (0.2, 0.5, 0.8):
        _, slope = jax.jvp(lambda t: v(X, t), (jnp.float32(t),), (jnp.float32(1),))
        quotient = (exact(X, t + 1e-6) - exact(X, t - 1e-6)) / 2e-6
        assert relative_error(slope, quotient) < 2e-6  # measured: 6e-7


def test_there_and_back(digits):
    net, variables = digits
    wanted = jax.jit(jax_edm2.denoiser(net, variables, jax.nn.one_hot(jnp.array([1, 2]), 10)))
    back = flow.denoiser(flow.velocity(wanted))
    noise = jax.random.normal(jax.random.key(1), (2, 1, 8, 8))
    for sigma in (0.01, 0.5, 1.0, 30.0):
        x = noise * jnp.sqrt(sigma**2 + 0.25)
        assert relative_error(back(x, sigma), wanted(x, sigma)) < 2e-5  # measured: 4e-6, at 30


def test_interpolation_is_the_training_target():
    images = 0.5 * jax.random.normal(jax.random.key(2), X.shape)
    at, target = flow.interpolate(X, images, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_array_equal(target, images - X)
    np.testing.assert_allclose(at[0], X[0])
    np.testing.assert_allclose(at[1], 0.75 * X[1] + 0.25 * images[1], rtol=1e-6)
    np.testing.assert_allclose(at[2], images[2])


def test_the_loop_of_jax_flow_ends_where_our_samplers_do(digits):
    """The README of kvfrans/jax-flow: x = x + v dt, from noise at t = 0, in N equal steps."""
    net, variables = digits
    labels = jax.nn.one_hot(jnp.arange(4), 10)
    noise = jax.random.normal(jax.random.key(3), (4, 1, 8, 8))
    v = jax.jit(flow.velocity(jax_edm2.denoiser(net, variables, labels)))
    x, steps = noise, 100
    for i in range(steps):
        x = x + v(x, i / steps) * (1 / steps)
    fine = jax_edm2.sample(net, variables, noise, labels, settings=jax_edm2.Settings(num_steps=32))
    assert jnp.abs(x - fine).max() < 0.06  # measured: 0.024, and 0.014 with 500 steps
