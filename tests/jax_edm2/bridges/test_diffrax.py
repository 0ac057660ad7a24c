"""The probability flow in diffrax: samples, inversion, likelihoods."""

import json
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_edm2
from golden import likelihood

MEAN, STD = 0.3, 0.5
NOISE = jax.random.normal(jax.random.key(0), (3, 2, 2, 2))


def denoise(x, sigma):
    """D of data that are N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact_path(noise, sigma):
    """Where the probability flow from 80 noise is at sigma."""
    return MEAN + (80 * noise - MEAN) * jnp.sqrt((STD**2 + sigma**2) / (STD**2 + 80**2))


def test_dense_output_of_an_adaptive_solver_is_the_exact_path():
    solution = diffrax.diffeqsolve(
        jax_edm2.diffrax.probability_flow(denoise), diffrax.Tsit5(), 80.0, 0.002, None, 80 * NOISE,
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6), saveat=diffrax.SaveAt(dense=True),
    )  # fmt: skip
    for sigma in (79.0, 10.0, 1.0, 0.3, 0.01):
        np.testing.assert_allclose(
            solution.evaluate(sigma), exact_path(NOISE, sigma), rtol=1e-4, atol=1e-4
        )  # measured: 1.7e-5


def test_euler_s_method_in_diffrax_is_ours():
    sigmas = jax_edm2.noise_levels(16)
    ours = jax_edm2.euler(denoise, NOISE, [*sigmas[:-1]])
    steps = diffrax.StepTo(jnp.asarray(sigmas[:-1], jnp.float32))
    term = jax_edm2.diffrax.probability_flow(denoise)
    end = diffrax.diffeqsolve(
        term, diffrax.Euler(), steps.ts[0], steps.ts[-1], None, 80 * NOISE, stepsize_controller=steps
    )
    np.testing.assert_allclose(end.ys[-1], ours, atol=2e-5)  # measured: 3e-7


@pytest.mark.parametrize("churn", [1.0, 3.0])
def test_the_stochastic_variants_have_the_same_marginals(churn):
    noise = jax.random.normal(jax.random.key(1), (512, 1, 4, 4))
    shape = jax.ShapeDtypeStruct(noise.shape, noise.dtype)
    path = diffrax.VirtualBrownianTree(0.002, 80.0, tol=1e-3, shape=shape, key=jax.random.key(2))
    term = jax_edm2.diffrax.reverse_sde(denoise, path, churn)
    steps = diffrax.StepTo(jnp.asarray(jax_edm2.noise_levels(300)[:-1], jnp.float32))
    solution = diffrax.diffeqsolve(
        term, diffrax.Euler(), steps.ts[0], steps.ts[-1], None, 80 * noise, stepsize_controller=steps
    )
    found = solution.ys[-1]
    assert abs(float(found.mean()) - MEAN) < 0.02  # three standard errors of 8,192 values
    assert abs(float(found.std()) - STD) < 0.015


def test_without_churn_it_is_the_probability_flow():
    shape = jax.ShapeDtypeStruct(NOISE.shape, NOISE.dtype)
    path = diffrax.VirtualBrownianTree(0.002, 80.0, tol=1e-3, shape=shape, key=jax.random.key(2))
    drift, diffusion = jax_edm2.diffrax.reverse_sde(denoise, path, 0.0).terms
    flow = jax_edm2.diffrax.probability_flow(denoise)
    np.testing.assert_array_equal(drift.vf(3.0, NOISE, None), flow.vf(3.0, NOISE, None))
    assert not jnp.any(diffusion.vf(3.0, NOISE, None).mv(NOISE))


def test_encode_undoes_decode_and_both_are_exact():
    images = jax_edm2.diffrax.decode(denoise, NOISE)
    np.testing.assert_allclose(images, exact_path(NOISE, 0.002), atol=1e-4)  # measured: 1.7e-5
    np.testing.assert_allclose(jax_edm2.diffrax.encode(denoise, images), NOISE, atol=2e-4)  # measured: 3e-5


def test_a_sample_of_the_digits_is_inverted_and_restored(digits):
    net, variables = digits
    seeds = jax_edm2.TorchCUDA(range(4))
    noise, labels = seeds.randn((1, 8, 8)), jax.nn.one_hot(jnp.arange(4), 10)
    images = jax_edm2.sample(net, variables, jnp.asarray(noise), labels)
    flow = jax_edm2.denoiser(net, variables, labels)
    found = jax.jit(lambda images: jax_edm2.diffrax.encode(flow, images))(images)
    restored = jax.jit(lambda noise: jax_edm2.diffrax.decode(flow, noise))(found)
    assert jnp.abs(restored - images).max() < 1e-4  # measured: 6e-6
    assert 0.8 < float(found.std()) < 1.2


def test_the_likelihood_of_gaussian_data_is_exact():
    images = MEAN + STD * NOISE
    found, noise = jax_edm2.diffrax.log_likelihood(denoise, images)
    growth = (STD**2 + 80**2) / (STD**2 + 0.002**2)  # of the variance along the path
    end = MEAN + (images - MEAN) * math.sqrt(growth)
    prior = -(jnp.square(end / 80) + math.log(2 * math.pi * 80**2)).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(found, prior + 8 / 2 * math.log(growth), atol=2e-4)  # measured: 4e-5
    variance = STD**2 + 0.002**2
    exact = -(jnp.square(images - MEAN) / variance + math.log(2 * math.pi * variance)).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(found, exact, atol=0.03)  # measured: 0.012: at 80, data of mean 0.3 are not N(0, 80^2)
    np.testing.assert_allclose(noise, jax_edm2.diffrax.encode(denoise, images), atol=1e-4)


def test_hutchinson_s_estimate_is_unbiased():
    mix = jnp.asarray(
        np.random.default_rng(0).standard_normal((8, 8)) / 8, jnp.float32
    )  # a trace that probes differ on

    def mixed(x, sigma):
        return denoise(x, sigma) + (x.reshape(-1, 8) @ mix).reshape(x.shape) * sigma / (1 + sigma**2)

    exact, _ = jax_edm2.diffrax.log_likelihood(mixed, NOISE)
    keys = jax.random.split(jax.random.key(3), 64)
    estimates = jax.vmap(lambda key: jax_edm2.diffrax.log_likelihood(mixed, NOISE, key, probes=2)[0])(keys)
    error = estimates.std(0) / math.sqrt(len(keys))
    assert (jnp.abs(estimates.mean(0) - exact) < 4 * error).all()
    assert (error > 1e-3).all()


def test_bits_per_dimension():
    """A density that is uniform on [-1, 1] gives every one of 256 levels 255 / 256 of a bit's eight."""
    images = jnp.zeros((1, 1, 2, 2))
    uniform = jnp.array([4 * math.log(1 / 2)])
    np.testing.assert_allclose(jax_edm2.diffrax.bits_per_dim(uniform, images), math.log2(255), rtol=1e-6)


def test_the_likelihood_of_digits_is_that_of_pytorch_in_float64(digits):
    bits, noise = likelihood.distance(*digits, json.loads(likelihood.RECORD.read_text()))
    assert bits < likelihood.BOUND
    assert noise < 1e-2
