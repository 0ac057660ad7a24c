"""Where variables are: uncommitted, sharded by a tree, on meshes of four devices with explicit and automatic axes."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jax_edm2
from jax_edm2.converter import processes
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


MESHES = """
import sys
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jax_edm2
from jax_edm2.record import Encoder
from jax_edm2.vae import VAEConfig, VAEDecoder

# Programs whose parts meet: on a CPU they must not overtake each other.
jax.config.update("jax_cpu_enable_async_dispatch", False)
assert len(jax.devices()) == 4
path = sys.argv[1]
keys = jax.random.split(jax.random.key(0), 8)
x = np.asarray(jax.random.normal(keys[0], (8, 1, 8, 8)))
sigma = np.exp(np.linspace(-4, 4, 8, dtype=np.float32))
labels = np.eye(10, dtype=np.float32)[np.arange(8)]
settings = jax_edm2.Settings(num_steps=2, guidance=1.5)
decoder = VAEDecoder(VAEConfig(block_out_channels=(32, 32), norm_num_groups=8, layers_per_block=1))
weights = {name: 0.1 * jax.random.normal(keys[1], shape) for name, shape in decoder.config.tensors.items()}
latents = np.asarray(jax.random.normal(keys[2], (8, 4, 4, 4)))
encoder = Encoder("StabilityVAEEncoder", scale=(1.0,) * 4, bias=(0.0,) * 4)
decode, weights = jax_edm2.make_decoder(encoder, (decoder, weights))


def everything(place, variables, weights):
    net = jax_edm2.load(path)[0]
    images, levels, classes = place(x), place(sigma), place(labels)
    found = {}
    found["apply"] = jax.jit(net.apply)(variables, images, levels, classes)
    folded = jax_edm2.fold(net, variables)
    found["fold"] = jax.jit(folded[0].apply)(folded[1], images, levels, classes)
    found["sample"] = jax_edm2.sample(net, variables, images, classes, guide=(net, variables), settings=settings)

    def loss(params, constants, images, levels, classes):
        v = {"params": params, "constants": constants}
        return jnp.mean(jax_edm2.denoising_loss(net, v, images, levels, images, classes))

    step = jax.jit(jax.value_and_grad(loss))
    found["loss"], gradient = step(variables["params"], variables["constants"], images, levels, classes)
    found["gradient"] = gradient["unet"]["out_gain"]
    found["sphere"] = jax_edm2.project_to_sphere(variables)["params"]["unet"]["out_gain"]
    found["decode"] = jax.jit(decode)(weights, place(latents)).astype(jnp.float32)
    generator = jax_edm2.Generator(net, variables, settings=jax_edm2.Settings(num_steps=2))
    found["generator"] = np.concatenate([np.asarray(batch.latents) for batch in generator(range(8))])
    return {name: np.asarray(value) for name, value in found.items()}


truth = everything(np.asarray, jax_edm2.load(path, dtype=jnp.float32)[1], weights)
worst = 0
for axes in AxisType.Explicit, AxisType.Auto:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axes,))
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    replicated = jax.device_put(weights, everywhere)
    shapes = jax.tree.map(np.shape, jax_edm2.load(path)[1], is_leaf=lambda leaf: hasattr(leaf, "shape"))
    fsdp = jax.tree.map(
        lambda shape: split if shape and shape[0] % 4 == 0 else everywhere, shapes, is_leaf=lambda s: type(s) is tuple
    )
    for sharding in fsdp, everywhere, None:
        _, variables = jax_edm2.load(path, dtype=jnp.float32, sharding=sharding)
        for context in (False, True) if sharding is None else (True,) if axes is AxisType.Explicit else (False,):
            if context:
                with jax.set_mesh(mesh):
                    found = everything(lambda array: jax.device_put(array, split), variables, replicated)
            else:
                found = everything(lambda array: jax.device_put(array, split), variables, replicated)
            for name, value in found.items():
                assert value.shape == truth[name].shape and value.dtype == truth[name].dtype, name
                error = np.abs(value - truth[name]).max() / np.abs(truth[name]).max()
                worst = max(worst, error)
                assert error <= 2e-5, (axes, context, name, error)
print("worst", worst)
"""


def test_meshes_of_four_devices(digits_checkpoint, monkeypatch):
    """Every public function that computes, with sharded images, and variables in parts, replicated or uncommitted."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run([*processes.python(MESHES), str(digits_checkpoint)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("worst")
