"""Operations that are computed in another way than in PyTorch: sums, resampling, Winograd's convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_edm2
from jax_edm2 import winograd
from jax_edm2.folding import folding_for, platform_of
from jax_edm2.ops import convolve, mp_cat, mp_sum, resample
from jax_edm2.torch_ref.network import mp_cat as torch_cat
from jax_edm2.torch_ref.network import mp_sum as torch_sum
from jax_edm2.torch_ref.network import resample as torch_resample
from tests.jax_edm2.test_parity import jax_variables
from tests.support.networks import inputs, network, relative_error

WIDE = {"img_resolution": 10, "img_channels": 3, "label_dim": 4, "model_channels": 32, "channel_mult": [1, 2],
        "num_blocks": 1, "attn_resolutions": [5]}  # fmt: skip


@pytest.mark.parametrize("mode", ["up", "down"])
@pytest.mark.parametrize("taps", [[1, 1], [1, 3], [1, 2, 0.5, 4], [1, 2, 3, 3, 2, 1], [1, 2, 3, 5, 8, 1, 2, 3]])
@pytest.mark.parametrize("size", [(8, 8), (4, 6), (2, 2)])
def test_resample_is_pytorchs_convolution(mode, taps, size):
    x = np.random.default_rng(0).standard_normal((2, 3, *size))
    with jax.enable_x64():
        ours = resample(jnp.asarray(x.transpose(0, 2, 3, 1)), taps, mode)
    theirs = torch_resample(torch.from_numpy(x), taps, mode).numpy()
    np.testing.assert_allclose(np.asarray(ours).transpose(0, 3, 1, 2), theirs, rtol=0, atol=2.7e-15)  # measured: 9e-16


@pytest.mark.parametrize("t", [-1e6, -0.2, 0, 0.3, 0.5, 0.7, 1, 1.3, 1e6])
def test_sums_and_concatenations_at_any_balance(t):
    """Also beyond 0 and 1, where one share is negative."""
    a, b = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 6))
    for ours, theirs, pair in ((mp_sum, torch_sum, (a, b)), (mp_cat, torch_cat, (a, b[..., :2]))):
        exact = theirs(*(torch.from_numpy(x.transpose(0, 3, 1, 2)) for x in pair), t)
        with jax.enable_x64():
            double = ours(*map(jnp.asarray, pair), t)
        single = ours(*(jnp.asarray(x, jnp.float32) for x in pair), t)
        assert relative_error(double.transpose(0, 3, 1, 2), exact) <= 4.5e-16  # measured: 1.5e-16
        assert relative_error(single.transpose(0, 3, 1, 2), exact) <= 2.1e-7  # measured: 7e-8


@pytest.mark.parametrize("shape", [(2, 6, 8, 32, 40), (3, 5, 7, 33, 32), (1, 1, 1, 32, 32), (3, 64, 64, 128, 32)])
def test_winograd(shape):
    """With sizes that are odd, and with so much that images are computed one after the other."""
    *image, out = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal(image).astype(np.float32)
    w = rng.standard_normal((3, 3, image[-1], out)).astype(np.float32) / np.float32(np.sqrt(9 * image[-1]))
    ours = jax.jit(winograd.convolve)(x, winograd.transform(jnp.asarray(w)))
    with jax.enable_x64():
        exact = convolve(jnp.asarray(x, jnp.float64), jnp.asarray(w, jnp.float64), 1, "HWIO")
    assert ours.shape == exact.shape
    assert ours.dtype == jnp.float32
    assert relative_error(ours, exact) < 8.1e-7  # measured: 2.7e-7


def test_winograd_has_a_gradient():
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 4, 32), (3, 3, 32, 32)))
    ours = jax.grad(lambda x: jnp.sum(winograd.convolve(x, winograd.transform(jnp.asarray(w))) ** 2))(jnp.asarray(x))
    with jax.enable_x64():
        x, w = jnp.asarray(x, jnp.float64), jnp.asarray(w, jnp.float64)
        exact = jax.grad(lambda x: jnp.sum(convolve(x, w, 1, "HWIO") ** 2))(x)
    assert relative_error(ours, exact) < 6e-7  # measured: 2.9e-7


def test_a_folded_network_uses_it_where_it_is_faster():
    """On the CPU in float32, for wide layers, at resolutions that are even or odd; and computes the same."""
    net, arguments = jax_edm2.Precond(jax_edm2.EDM2Config(**WIDE)), inputs(WIDE, 3, 0)
    variables = jax_variables(network(WIDE))
    outputs = []
    for platform, shape in (("cpu", (16, 32, 32)), ("tpu", (3, 3, 32, 32))):
        folded, prepared = jax_edm2.fold(net, variables, platform)
        assert prepared["params"]["unet"]["enc_10x10_block0"]["conv_res0"]["mpconv_weight"].shape == shape
        assert prepared["params"]["unet"]["enc_10x10_conv"]["mpconv_weight"].shape == (3, 3, 4, 32)  # too narrow
        assert jax_edm2.fold(folded, prepared) == (folded, prepared)
        outputs.append(jax.jit(folded.apply)(prepared, *arguments))
    assert relative_error(*outputs) < 6e-7  # measured: 2e-7
    assert folding_for(net.clone(dtype=jnp.bfloat16), "cpu") == "direct"
    assert platform_of(jax.tree.map(jnp.asarray, variables)) == platform_of(variables) == "cpu"
