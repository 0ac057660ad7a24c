"""Where variables are: uncommitted, sharded by a tree, on meshes with explicit and automatic axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_edm2
from jax_edm2.converter.convert import convert
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.placement import placement

PATHS = ["params/unet/out_gain", "params/unet/enc/conv/mpconv_weight", "constants/unet/freqs"]


@pytest.fixture(scope="module", params=["safetensors", "orbax"])
def stored(request, digits_pkl, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / ("digits" + ".safetensors" * (request.param == "safetensors"))
    with read_snapshot(digits_pkl) as snapshot:
        convert(snapshot, path, format=request.param)
    return path


@pytest.mark.parametrize("dtype", [None, jnp.float32])
@pytest.mark.parametrize("check", [True, False])
def test_loaded_variables_are_uncommitted(stored, dtype, check):
    _, variables = jax_edm2.load(stored, dtype=dtype, check=check)
    assert not any(leaf.committed for leaf in jax.tree.leaves(variables))


def test_a_training_step_compiles_once(stored):
    """Its second call has variables that JAX computed, its first has those that were loaded."""
    net, variables = jax_edm2.load(stored, dtype=jnp.float32)
    optimiser = optax.sgd(0.01)

    @jax.jit
    def step(params, state, images):
        def loss(params):
            sigma, noise = jnp.ones(len(images)), jnp.ones_like(images)
            return jnp.mean(jax_edm2.denoising_loss(net, {**variables, "params": params}, images, sigma, noise))

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = variables["params"]
    state = optimiser.init(params)
    for _ in range(3):
        params, state = step(params, state, np.zeros((2, 1, 8, 8), np.float32))
    assert step._cache_size() == 1


def test_a_tree_of_shardings(stored):
    mesh = jax.make_mesh((2,), ("data",))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    _, plain = jax_edm2.load(stored)
    leaves = jax.tree.map(lambda w: split if w.ndim and w.shape[0] % 2 == 0 else everywhere, plain)
    _, variables = jax_edm2.load(stored, sharding=leaves)
    assert jax.tree.map(lambda w: w.sharding, variables) == leaves
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), plain, variables))
    _, variables = jax_edm2.load(stored, sharding={"params": everywhere, "constants": None})
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(variables["params"]))
    assert not any(leaf.committed for leaf in jax.tree.leaves(variables["constants"]))


@pytest.mark.parametrize(
    ("sharding", "text"),
    [
        ({"params": None}, "sharding: has nothing for constants/unet/freqs (no constants)"),
        ({"params": {"unet": {}}, "constants": None}, "has nothing for params/unet/out_gain (no params/unet/out_gain)"),
        ({"params": None, "constants": None, "parms": None}, "sharding: parms is not part of the network"),
        ({"params": "cpu", "constants": None}, "sharding: params is a str; it should be a jax.sharding.Sharding"),
        ({"params": {"unet": {"out_gain": {}, "enc": None}}, "constants": None}, "params/unet/out_gain is a tree"),
        ("data", "sharding: is a str; it should be a jax.sharding.Sharding"),
    ],
)
def test_shardings_that_do_not_fit(sharding, text):
    with pytest.raises(ValueError, match="sharding") as error:
        placement(sharding, PATHS)
    assert text in str(error.value)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_computes_what_one_device_does(tiny_checkpoint, axes):
    """With parts of the weights on each of two devices; `make meshes` tries all functions on four, in all kinds."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axes,))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    net, plain = jax_edm2.load(tiny_checkpoint, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((4, 1, 8, 8), np.float32), np.eye(10, dtype=np.float32)[:4]
    parts = jax.tree.map(lambda w: split if w.ndim and w.shape[0] % 2 == 0 else everywhere, plain)
    _, variables = jax_edm2.load(tiny_checkpoint, dtype=jnp.float32, sharding=parts)
    settings = jax_edm2.Settings(num_steps=2)
    expected = jax_edm2.sample(net, plain, *batch, settings=settings)
    with jax.set_mesh(mesh):
        found = jax_edm2.sample(net, variables, *jax.device_put(batch, split), settings=settings)
    assert jnp.abs(np.asarray(found) - expected).max() < 9e-5 * jnp.abs(expected).max()  # measured: 6.8e-6
