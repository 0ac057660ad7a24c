"""The drop-ins for jax-edm2's classes and functions. `make nmboffi` holds them to that project's own."""

import dataclasses
import pickle
from functools import partial

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from flax.traverse_util import flatten_dict

import jax_edm2
from jax_edm2.bridges import nmboffi
from jax_edm2.bridges.nmboffi import PrecondUNet
from jax_edm2.config import EDM2Config
from jax_edm2.network import Precond
from tests.jax_edm2.test_parity import CONFIG, jax_variables
from tests.support.networks import network, relative_error

KWARGS = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
XS = jax.random.normal(jax.random.key(1), (3, 2, 8, 8))
TS = jnp.array([0.1, 0.5, 0.9])
LABELS = jnp.eye(4)[:3]


def flow_map(**unet_kwargs):
    return PrecondUNet(img_resolution=8, img_channels=2, label_dim=4, unet_kwargs={**KWARGS, **unet_kwargs})


def random_variables(model, *arguments):
    """As model.init gives them, from numpy; compiling JAX's random streams would take most of the tests' time."""
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(model.init, jax.random.key(0), *arguments)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), tree)


def test_the_example_of_jax_edm2_runs():
    model = jax_edm2.PrecondUNet(
        img_resolution=32,
        img_channels=3,
        label_dim=10,
        sigma_data=0.5,
        logvar_channels=128,
        use_bfloat16=True,
        unet_kwargs={
            "model_channels": 8,
            "channel_mult": [2, 2, 2],
            "num_blocks": 1,
            "attn_resolutions": [16, 8],
            "use_fourier": False,
            "block_kwargs": {"dropout": 0.13},
        },
    )
    x, t, label = jnp.ones((1, 3, 32, 32)), jnp.array([0.0]), jnp.eye(10)[:1]
    variables = model.init({"params": jax.random.PRNGKey(42)}, t, x, label, train=False, calc_weight=True)
    assert set(variables) == {"params"}
    projected = jax_edm2.project_to_sphere(variables)
    for path, value in flatten_dict(projected).items():
        if path[-1] == "mpconv_weight":
            rms = np.sqrt(np.square(value).mean(axis=tuple(range(1, value.ndim))))
            np.testing.assert_allclose(rms, 1, atol=2e-4)  # eps = 1e-4; measured: 1.8e-4
        else:
            assert value.shape == ()
    output, logvar = model.apply(projected, t, x, label, train=False, calc_weight=True)
    assert output.shape == x.shape
    assert output.dtype == logvar.dtype == jnp.float32


@pytest.mark.parametrize("fourier", [False, True])
def test_one_logvar_per_sample_and_labels_may_be_none(fourier):
    model = flow_map(use_fourier=fourier)
    variables = random_variables(model, TS, XS, LABELS)
    assert ("constants" in variables) == fourier
    apply = jax.jit(model.apply, static_argnames=("train", "calc_weight"))
    output, logvar = apply(variables, TS, XS, LABELS, calc_weight=True)
    assert logvar.shape == (3, 1, 1, 1)
    assert len(np.unique(logvar)) == 3
    np.testing.assert_array_equal(logvar, model.apply(variables, TS, method="calc_weight"))
    unlabelled = apply(variables, TS, XS)
    np.testing.assert_array_equal(unlabelled, apply(variables, TS, XS, jnp.zeros((3, 4))))
    assert relative_error(unlabelled, output) > 1e-2


def test_it_is_hashable_and_a_static_argument():
    model = flow_map(use_fourier=True, block_kwargs={"dropout": 0.1, "resample_filter": [1, 1]})
    assert hash(model) == hash(flow_map(use_fourier=True, block_kwargs={"dropout": 0.1, "resample_filter": [1, 1]}))
    variables = random_variables(model, TS, XS)
    output = jax.jit(lambda model, variables: model.apply(variables, TS, XS), static_argnums=0)(model, variables)
    assert output.shape == XS.shape
    assert freeze(model.unet_kwargs)["channel_mult"] == (1, 2)


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2, 0.5, 4]])
def test_it_holds_a_converted_network(taps):
    """The same U-Net under another head: D = c_skip x + c_out F, and this one gives sigma_data F."""
    kwargs = {**CONFIG, "resample_filter": taps}
    variables = jax_variables(network(kwargs))
    names = ("img_resolution", "img_channels", "label_dim")
    unet_kwargs = {k: v for k, v in kwargs.items() if k not in names} | {"use_fourier": True}
    block_kwargs = {k: unet_kwargs.pop(k) for k in ("resample_filter", "channels_per_head")}
    model = PrecondUNet(*(kwargs[k] for k in names), unet_kwargs={**unet_kwargs, "block_kwargs": block_kwargs})

    x = jax.random.normal(jax.random.key(2), (2, 3, 16, 16))
    sigma, labels, sigma_data = jnp.array([0.5, 3.0]), jnp.eye(5)[:2], 0.5
    denoised = jax.jit(Precond(EDM2Config(**kwargs)).apply)(variables, x, sigma, labels)
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    raw = (denoised - sigma_data**2 / total * x) * jnp.sqrt(total) / (s * sigma_data)
    ours = jax.jit(model.apply)(variables, jnp.log(sigma) / 4, x * sigma_data / jnp.sqrt(total), labels)
    assert relative_error(ours, sigma_data * raw) < 2.7e-6  # measured: 9e-7


def test_the_unet_alone_is_the_one_within():
    for fourier in (False, True):
        unet, outer = jax_edm2.EDM2UNet(8, 2, 4, use_fourier=fourier, **KWARGS), flow_map(use_fourier=fourier)
        assert hash(unet) == hash(jax_edm2.EDM2UNet(8, 2, 4, use_fourier=fourier, **KWARGS))
        assert unet.config == outer.config
        variables = random_variables(outer, TS, XS, LABELS)
        inner = {kind: tree["unet"] for kind, tree in variables.items()}
        made = jax.eval_shape(unet.init, jax.random.key(0), XS, TS, LABELS)
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, inner)
        assert jax.eval_shape(unet.apply, inner, XS.astype(jnp.bfloat16), TS, None).dtype == jnp.bfloat16
    output = jax.jit(unet.apply)(inner, XS / 0.5, TS.reshape(3, 1, 1, 1), LABELS)
    assert relative_error(0.5 * output, jax.jit(outer.apply)(variables, TS, XS, LABELS)) < 1e-6


def test_replicated_variables_are_projected_on_every_device():
    rng = np.random.default_rng(0)
    weight, freqs, gain = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 3, 3), 6, ()))
    variables = {"params": {"conv": {"mpconv_weight": weight}, "gain": gain}, "constants": {"freqs": freqs}}
    replicated = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), variables)  # two devices: see conftest.py
    projected = jax_edm2.pmap_project_to_sphere(replicated)
    wanted = jax_edm2.project_to_sphere(variables)
    for leaf, one in zip(*map(jax.tree.leaves, (projected, wanted)), strict=True):
        assert len(leaf.devices()) == 2
        np.testing.assert_allclose(leaf, np.stack([one, one]), rtol=3e-7)
    np.testing.assert_array_equal(projected["constants"]["freqs"], replicated["constants"]["freqs"])
    with pytest.raises(ValueError, match="3"):
        jax_edm2.pmap_project_to_sphere(jax.tree.map(lambda leaf: np.stack([leaf] * 3), variables))


def test_a_converted_network_there_and_back(digits_checkpoint, tmp_path):
    net, variables = jax_edm2.load(digits_checkpoint)
    arguments = nmboffi.arguments(net)
    assert arguments["unet_kwargs"]["use_fourier"]
    assert arguments["unet_kwargs"]["block_kwargs"]["channels_per_head"] == 32
    model = PrecondUNet(**arguments)
    example = jnp.ones(1), jnp.ones((1, 1, 8, 8)), jnp.eye(10)[:1]
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0), *example))
    assert shapes == jax.tree.map(jnp.shape, variables)

    back, tree = nmboffi.to_precond(model, freeze(variables))
    assert back == Precond(dataclasses.replace(net.config, use_fp16=True))
    written = jax_edm2.save(tmp_path / "back.safetensors", back, tree)
    assert written.digest == jax_edm2.read_record(digits_checkpoint).digest


def test_positional_features_become_constants(tmp_path):
    model = flow_map(channel_mult=[1], attn_resolutions=[])
    variables = random_variables(model, TS, XS, LABELS)
    unpickled = pickle.loads(pickle.dumps(variables))
    restored = flax.serialization.msgpack_restore(flax.serialization.to_bytes(variables))
    first, second = (
        jax_edm2.save(tmp_path / f"{i}.safetensors", *nmboffi.to_precond(model, stored))
        for i, stored in enumerate((unpickled, restored))
    )
    assert first.digest == second.digest
    net, loaded = jax_edm2.load(tmp_path / "0.safetensors")

    @partial(jax.jit, static_argnums=0)
    def embedding_and_logvar(model, variables):
        ts = jnp.array([0.1, 50.0, 900.0])
        return model.apply(variables, method=lambda self: (self.unet.net.embed(ts, LABELS), self.calc_weight(ts)))

    wanted = embedding_and_logvar(model, variables)
    found = embedding_and_logvar(PrecondUNet(**nmboffi.arguments(net)), loaded)
    assert relative_error(found[0], wanted[0]) < 3e-6  # measured: 7e-7
    assert relative_error(found[1], wanted[1]) < 3e-6  # measured: 1.1e-6


def test_what_jax_edm2_has_not():
    config = EDM2Config(8, 2, 4, **KWARGS)
    assert nmboffi.arguments(Precond(config, jnp.bfloat16))["use_bfloat16"]
    for net, why in (
        (Precond(config, jnp.float16), "one that computes in float16"),
        (Precond(config, folded="direct"), "a folded network"),
    ):
        with pytest.raises(ValueError, match=f"unfolded networks in float32 and bfloat16, not {why}"):
            nmboffi.arguments(net)
    variables = random_variables(flow_map(), TS, XS, LABELS)
    del variables["params"]["logvar_linear"]  # what init makes there without calc_weight=True
    with pytest.raises(jax_edm2.CheckpointError, match="params/logvar_linear/mpconv_weight"):
        jax_edm2.save("never.safetensors", *nmboffi.to_precond(flow_map(), variables))
