"""Converted networks as NNX modules; and the digits of Flax's guide, with one of them for its U-Net."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jax_edm2

X = jax.random.normal(jax.random.key(1), (2, 1, 8, 8))
SIGMA, LABELS = jnp.array([0.3, 5.0]), jnp.eye(10)[:2]


@pytest.fixture(scope="module")
def model(digits_checkpoint):
    """In one program for all tests of this file."""
    return jax_edm2.nnx.load(digits_checkpoint, dtype=jnp.float32)


@pytest.fixture(scope="module")
def denoise():
    return nnx.jit(lambda model, *arguments: model(*arguments))


def test_its_numbers_are_the_linen_network_s(model, denoise, digits_checkpoint):
    net, variables = jax_edm2.load(digits_checkpoint, dtype=jnp.float32)
    wanted = jax.jit(net.apply)(variables, X, SIGMA, LABELS)
    np.testing.assert_array_equal(denoise(model, X, SIGMA, LABELS), wanted)
    assert jax.tree.structure(model.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, model.variables, variables)


def test_it_is_split_and_merged(model, denoise):
    graph, params, constants = nnx.split(model, nnx.Param, ...)
    assert len(jax.tree.leaves(params)) == 59
    assert len(jax.tree.leaves(constants)) == 4
    merged = nnx.merge(graph, params, constants)
    np.testing.assert_array_equal(denoise(merged, X, SIGMA, LABELS), denoise(model, X, SIGMA, LABELS))


def test_it_is_saved_by_us_and_by_orbax(model, tmp_path):
    jax_edm2.save(tmp_path / "mine.safetensors", model.net, model.variables)
    again = jax_edm2.nnx.load(tmp_path / "mine.safetensors")
    graph, state = nnx.split(again)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = nnx.merge(graph, checkpointer.restore(tmp_path / "state", state))
    jax.tree.map(np.testing.assert_array_equal, restored.variables, model.variables)


TINY = jax_edm2.EDM2Config(8, 1, 3, model_channels=4, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.5)
TINY_LABELS = jnp.eye(3)[:2]


@pytest.fixture
def tiny():
    net, rng = jax_edm2.Precond(TINY), np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, {"params": jax.random.key(0), "constants": jax.random.key(0)}, X, SIGMA)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    return jax_edm2.nnx.Denoiser(net, variables)


@nnx.jit
def train(model, optimizer, x):
    def loss(model):
        return jnp.mean(jnp.square(model(x, SIGMA, TINY_LABELS)))

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    model.project_to_sphere()
    return value


def test_it_trains_as_the_linen_network_with_optax(tiny):
    net, variables, adam = tiny.net, tiny.variables, optax.adam(1e-2)
    optimizer = nnx.Optimizer(tiny, adam, wrt=nnx.Param)
    with jax.numpy_dtype_promotion("standard"):
        found = [train(tiny, optimizer, X) for _ in range(3)]
        state = adam.init(variables["params"])

        @jax.jit
        @jax.value_and_grad
        def differentiate(params, constants):
            variables = {"params": params, "constants": constants}
            return jnp.mean(jnp.square(net.apply(variables, X, SIGMA, TINY_LABELS)))

        for value in found:
            loss, gradients = differentiate(variables["params"], variables["constants"])
            np.testing.assert_allclose(value, loss, rtol=1e-5)
            updates, state = adam.update(gradients, state)
            params = optax.apply_updates(variables["params"], updates)
            variables = jax_edm2.project_to_sphere({**variables, "params": params})
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), tiny.variables, variables)  # measured: 1e-6
    assert found[2] < found[0]


def test_constants_are_not_trained(tiny):
    gradients = nnx.jit(nnx.grad(lambda model: model(X, SIGMA, TINY_LABELS).sum()))(tiny)
    assert set(nnx.to_flat_state(gradients).paths) == {
        ("params", *p) for p in nnx.to_flat_state(nnx.state(tiny.params)).paths
    }


def test_dropout_has_keys_of_its_own(tiny, denoise):
    still = denoise(tiny, X, SIGMA, TINY_LABELS)
    tiny.train()
    with pytest.raises(ValueError, match="dropout needs keys"):
        tiny(X, SIGMA, TINY_LABELS)
    tiny.rngs = nnx.data(nnx.Rngs(0))
    first, second = denoise(tiny, X, SIGMA, TINY_LABELS), denoise(tiny, X, SIGMA, TINY_LABELS)
    assert jnp.abs(first - second).max() > 1e-3
    tiny.rngs = nnx.data(nnx.Rngs(0))
    np.testing.assert_array_equal(denoise(tiny, X, SIGMA, TINY_LABELS), first)
    tiny.eval()
    np.testing.assert_array_equal(denoise(tiny, X, SIGMA, TINY_LABELS), still)


def test_float16_is_not_trained(digits_checkpoint):
    model = jax_edm2.nnx.load(digits_checkpoint, rngs=nnx.Rngs(0))
    model.train()
    with pytest.raises(ValueError, match="float16"):
        model(X, SIGMA, LABELS)


class FlowNetwork(nnx.Module):
    """In the place of the guide's U-Net: model(x [N, 8, 8, 1], t [N]) is a velocity."""

    def __init__(self, path):
        self.denoiser = jax_edm2.nnx.load(path, dtype=jnp.float32)

    def __call__(self, x, t):
        v = jax_edm2.flow.velocity(self.denoiser)
        return v(x.transpose(0, 3, 1, 2), t).transpose(0, 2, 3, 1)


def test_the_digits_of_flax_s_guide(digits_checkpoint):
    """Its data, loss, optimiser, samples and reconstructions (flax.readthedocs.io, digits diffusion model), shortened:
    a step of training at the guide's rate, from a network that has seen all digits, learns its one digit."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = jnp.asarray(digits.images[digits.target == 2] / 16.0 * 2 - 1, jnp.float32).reshape(-1, 8, 8, 1)[:32]
    model, rngs = FlowNetwork(digits_checkpoint), nnx.Rngs(0)
    chain = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(5e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=2e-5)
    )
    optimizer = nnx.ModelAndOptimizer(model, chain)

    def loss_fn(model, x1, rngs):
        t = jax.nn.sigmoid(rngs.normal((x1.shape[0],)))
        t_full = t[:, None, None, None]
        x0 = rngs.normal(x1.shape)
        xt = (1 - t_full) * x0 + t_full * x1
        return jnp.mean((model(xt, t) - (x1 - x0)) ** 2)

    @nnx.jit
    def train_step(model, data, rngs, optimizer):
        loss, grads = nnx.value_and_grad(loss_fn)(model, data, rngs)
        optimizer.update(grads)
        return loss

    def integrate(model, x, t0, t1):
        def drift(t, y, args):
            return model(y[None], t * jnp.ones(1))[0]

        def one(x):
            return diffrax.diffeqsolve(diffrax.ODETerm(drift), diffrax.Tsit5(), t0, t1, (t1 - t0) / 10, x).ys[0]

        return jax.vmap(one)(x)

    run = nnx.jit(integrate)  # once for both directions, whose times are arguments

    with jax.numpy_dtype_promotion("standard"):
        losses = [float(train_step(model, images, rngs, optimizer)) for _ in range(10)]
        samples = run(model, rngs.normal((2, 8, 8, 1)), 0.0, 1.0)
        restored = run(model, run(model, images[:2], 1.0, 0.0), 0.0, 1.0)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert losses[0] < 1  # measured: 0.66; the guide's network begins at 1.84
    assert jnp.isfinite(samples).all()
    assert jnp.abs(samples).mean() > 0.5  # ink and paper, which noise and a blur are not
    assert jnp.sqrt(jnp.mean(jnp.square(restored - images[:2]))) < 0.12  # measured: 0.059
