"""JAX computes what PyTorch computes: both against PyTorch in float64, for random configurations and inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_edm2.config import EDM2Config
from jax_edm2.converter.names import jax_path
from jax_edm2.network import Precond
from tests.support.networks import configs, evaluate, inputs, network, relative_error

# Of 250 random configurations the worst: see the figures beside each.
BOUND = 3e-6  # relative error against float64
RATIO = 4  # of PyTorch's own float32 error

CONFIG = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 5,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "channels_per_head": 16,
}


def jax_variables(net):
    return unflatten_dict({jax_path(name): value.numpy() for name, value in net.state_dict().items()}, sep="/")


def jax_outputs(net, kwargs, x, sigma, labels, dtype=jnp.float32):
    precond = Precond(EDM2Config(**kwargs), dtype)
    apply = jax.jit(lambda *arguments: precond.apply(*arguments, return_logvar=True))
    return apply(jax_variables(net), x, sigma, labels)


@settings(max_examples=4)  # of the 250 that `tests.surveys.parity` tries
@given(kwargs=configs(), seed=st.integers(0, 2**31), labelled=st.booleans())
def test_float32_is_as_right_as_pytorch(kwargs, seed, labelled):
    net = network(kwargs, seed)
    arguments = inputs(kwargs, 5, seed, labelled)
    truth = evaluate(net, *arguments)
    pytorch = evaluate(net, *arguments, torch.float32)
    for exact, theirs, ours in zip(truth, pytorch, jax_outputs(net, kwargs, *arguments), strict=True):
        assert ours.shape == exact.shape
        assert ours.dtype == jnp.float32
        error = relative_error(ours, exact)
        assert error <= BOUND
        assert error <= RATIO * relative_error(theirs, exact)


@settings(max_examples=2)
@given(kwargs=configs(), seed=st.integers(0, 2**31), labelled=st.booleans())
def test_float64_is_equal(kwargs, seed, labelled):
    net = network(kwargs, seed)
    arguments = inputs(kwargs, 3, seed, labelled)
    with jax.enable_x64():
        ours = jax_outputs(net, kwargs, *arguments, dtype=jnp.float64)
    for exact, value in zip(evaluate(net, *arguments), ours, strict=True):
        assert value.dtype == jnp.float64
        assert relative_error(value, exact) <= 6e-14  # measured: 2e-14 at most


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float16, 3e-3), (jnp.bfloat16, 2.8e-2)])
def test_half_precision_is_near_and_embeds_in_float32(dtype, bound):
    net = network(CONFIG)
    arguments = inputs(CONFIG, 4, seed=1)
    denoised, logvar = jax_outputs(net, CONFIG, *arguments, dtype=dtype)
    exact, exact_logvar = evaluate(net, *arguments)
    assert denoised.dtype == logvar.dtype == jnp.float32
    assert 1e-5 < relative_error(denoised, exact) < bound  # measured: 1.1e-3 and 9.6e-3
    assert relative_error(logvar, exact_logvar) < 4.8e-7  # measured: 1.6e-7: it is never in half precision


def test_half_precision_variables_are_raised_first():
    net = network(CONFIG).half().float()
    arguments = inputs(CONFIG, 4, seed=2)
    precond = Precond(EDM2Config(**CONFIG))
    variables = jax_variables(net)
    halves = jax.tree.map(lambda value: value.astype(np.float16), variables)
    apply = jax.jit(precond.apply)
    np.testing.assert_array_equal(apply(variables, *arguments), apply(halves, *arguments))


def test_a_scalar_sigma_serves_the_whole_batch():
    net = network(CONFIG)
    x, _, labels = inputs(CONFIG, 4, seed=3)
    scalar = jax_outputs(net, CONFIG, x, np.float32(0.7), labels)
    each = jax_outputs(net, CONFIG, x, np.full(4, 0.7, np.float32), labels)
    assert relative_error(scalar[0], each[0]) < 9e-7  # summation order; measured: 3e-7
    assert scalar[1].shape == (1, 1, 1, 1)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.inf])
def test_an_impossible_sigma_gives_nan_as_in_pytorch(sigma):
    net = network(CONFIG)
    x, _, labels = inputs(CONFIG, 2, seed=4)
    sigmas = np.array([sigma, 1], np.float32)
    (ours, _), theirs = jax_outputs(net, CONFIG, x, sigmas, labels), evaluate(net, x, sigmas, labels)[0]
    assert np.isnan(ours[0]).all()
    assert np.isnan(theirs[0]).all()
    assert np.isfinite(ours[1]).all()


def test_gradients_are_those_of_pytorch():
    net = network(CONFIG).double().requires_grad_(True)
    x, sigma, labels = inputs(CONFIG, 3, seed=5)
    weights = np.random.default_rng(6).standard_normal(x.shape)

    def total(denoised, logvar):
        return (denoised * weights.astype(denoised.dtype)).sum() + (logvar**2).sum()

    input_ = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    outputs = net(input_, noise, torch.from_numpy(labels), return_logvar=True)
    ((outputs[0] * torch.from_numpy(weights)).sum() + (outputs[1] ** 2).sum()).backward()

    variables = jax_variables(network(CONFIG))
    precond = Precond(EDM2Config(**CONFIG))

    def loss(params, x, sigma):
        return total(*precond.apply({**variables, "params": params}, x, sigma, labels, return_logvar=True))

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(variables["params"], x, sigma)
    for name, parameter in net.named_parameters():
        _, *path = jax_path(name).split("/")
        ours = grads[0]
        for key in path:
            ours = ours[key]
        assert relative_error(ours, parameter.grad) < 2e-5, name  # measured: 1.4e-5 at most
    assert relative_error(grads[1], input_.grad) < 2e-6  # measured: 1.0e-6
    assert relative_error(grads[2], noise.grad) < 1.4e-6  # measured: 4.8e-7


@pytest.mark.parametrize("labels", [np.arange(5), np.eye(4)[:3], np.ones(1, np.float32)])
def test_labels_that_are_not_one_hot_are_refused(labels):
    x, sigma, _ = inputs(CONFIG, 5, seed=8)
    with pytest.raises(ValueError, match=r"class_labels must be one-hot \[\d, 5\], not"):
        Precond(EDM2Config(**CONFIG)).apply(jax_variables(network(CONFIG)), x, sigma, labels)


def test_dropout_acts_in_training_only():
    kwargs = {**CONFIG, "dropout": 0.5}
    variables, (x, sigma, labels) = jax_variables(network(kwargs)), inputs(kwargs, 2, seed=7)
    precond = Precond(EDM2Config(**kwargs))
    apply = jax.jit(precond.apply, static_argnames="train")
    evaluated = apply(variables, x, sigma, labels)
    trained = [
        apply(variables, x, sigma, labels, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1)
    ]
    assert relative_error(trained[0], evaluated) > 1e-3
    assert relative_error(trained[0], trained[1]) > 1e-3
