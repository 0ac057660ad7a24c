"""The numbers and the rule."""

import math

import numpy as np
import pytest
import torch

from jax_edm2.config import EDM2Config
from jax_edm2.converter.verify.metrics import CHUNK, difference, gradient_norm, psnr
from jax_edm2.converter.verify.taps import EMBEDDING, Tap, scopes, tap_of_parameter, taps
from jax_edm2.converter.verify.torch_side.conditioning import Rounding, conditions
from jax_edm2.converter.verify.verdict import TOLERANCES, Guilty, guilty, judge
from jax_edm2.torch_ref.network import normalize
from tests.corpora.faults import CONFIG

STRICT = TOLERANCES["float32"]


def test_difference_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((3, CHUNK + 5))  # more than a chunk, and not a multiple of it
    x = (truth * (1 + 1e-3) + 1e-4 * rng.standard_normal(truth.shape)).astype(np.float32)
    found = difference(x, truth)
    apart = x.astype(np.float64) - truth
    assert found.error == pytest.approx(np.linalg.norm(apart) / np.linalg.norm(truth), rel=1.3e-15)
    assert found.scale == pytest.approx(np.vdot(x, truth) / np.vdot(truth, truth), rel=1.3e-15)
    assert found.cosine == pytest.approx(np.vdot(x, truth) / np.linalg.norm(x.astype(float)) / np.linalg.norm(truth))
    assert found.elementwise == pytest.approx(np.max(np.abs(apart / truth)), rel=1.3e-15)
    assert found.size == pytest.approx(np.sqrt(np.mean(truth**2)), rel=1.3e-15)
    assert found.problem is None


def test_a_scaled_copy_has_cosine_1_and_does_not_agree():
    truth = np.random.default_rng(0).standard_normal(1000)
    found = difference(2 * truth, truth)
    assert found.cosine == pytest.approx(1, abs=1e-15)
    assert not judge("isolated", "", "x", found, 0.0, STRICT).agrees


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_agree(value):
    truth = np.ones(10)
    x = truth.copy()
    x[3] = value
    found = judge("isolated", "", "x", difference(x, truth), 1.0, STRICT)
    assert "not finite at 1 of 10 elements" in found.failure
    assert found.margin == math.inf


def test_another_shape_does_not_agree():
    assert (
        "has shape [4, 1], should be [4]"
        in judge("isolated", "", "x", difference(np.ones((4, 1)), np.ones(4)), 0, STRICT).failure
    )


def test_a_truth_of_zeros_is_compared_absolutely():
    assert difference(np.zeros(4), np.zeros(4)).error == 0
    assert difference(np.full(4, 1e-3), np.zeros(4)).error == pytest.approx(2e-3)


def test_psnr():
    truth = np.array([0.0, 1.0, 2.0, 0.0])
    assert psnr(truth + 0.02, truth) == pytest.approx(40)
    assert psnr(truth, truth) == math.inf


def test_limits():
    assert STRICT.limit("isolated", 0.0) == 3e-6  # the floor
    assert STRICT.limit("isolated", 2e-6) == 8e-6  # four times PyTorch's error
    assert STRICT.limit("isolated", 1.0) == pytest.approx(3e-5)  # the ceiling: a bad reference excuses nothing
    assert STRICT.limit("isolated", math.nan) == STRICT.limit("isolated", math.inf) == 3e-6
    assert STRICT.limit("accumulated", 0.0) == 6e-6
    assert STRICT.limit("isolated", 0.0, 2.0) == 3e-6  # well conditioned: rounding explains less than the floor
    assert STRICT.limit("isolated", 0.0, 100.0) == pytest.approx(8e-5)  # ill conditioned: rounding explains more
    assert STRICT.limit("isolated", 0.0, math.nan) == 3e-6


def test_the_condition_of_a_norm_of_one_channel_is_that_of_calculus():
    x = torch.linspace(-1, 1, 4000, dtype=torch.float64)[:, None]  # some of it as near 0 as the norm's eps
    y = normalize(x, dim=1)
    taps = {Tap("block", "conv"): x, Tap("block", "norm"): y}
    found = conditions(
        lambda visit: visit(Tap("block", "norm"), normalize(visit(Tap("block", "conv"), x), dim=1)),
        lambda tap: taps[tap].numpy(),
    )
    slope = 1e-4 / (1e-4 + x.abs()) ** 2  # of x / (eps + |x|)
    exact = float(x.square().mean().sqrt() * slope.norm() / y.norm())
    assert exact > 10
    assert found["block/conv"] == pytest.approx(1, rel=1e-9)  # measured: 3.4e-10
    assert found["block/norm"] == pytest.approx(exact, rel=0.018)  # measured: 0.6 %


def test_gradients_are_disturbed_too():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    y = Rounding()(x)
    y.sum().backward()
    assert (y - x).abs().detach().numpy() == pytest.approx(1e-7, rel=1e-6)
    assert (x.grad - 1).abs().numpy() == pytest.approx(1e-7, rel=1e-6)
    assert 0.4 < (x.grad > 1).double().mean() < 0.6


def test_dtype_and_other_problems_fail_whatever_the_error():
    same = difference(np.ones(4), np.ones(4))
    found = judge("isolated", "", "x", same, 0.0, STRICT, problem="is float16, in PyTorch float32")
    assert not found.agrees
    assert found.failure == "is float16, in PyTorch float32"


def test_a_gains_gradient_is_measured_against_those_of_all_gains():
    sizes = {"a.emb_gain": 3.0, "b.emb_gain": 1e-6, "out_gain": 4.0, "a.weight": 1e9}
    assert gradient_norm("a.weight", sizes) is None
    assert gradient_norm("b.emb_gain", sizes) == pytest.approx(math.sqrt(25 / 3))
    assert gradient_norm("out_gain", sizes) == 4.0


def test_every_parameter_has_a_tap(digits):
    from jax_edm2.config import expected_tree
    from jax_edm2.converter.names import torch_name

    for config in (EDM2Config(**CONFIG), digits[0].config):
        known = set(taps(config))
        for path in expected_tree(config):
            assert tap_of_parameter(torch_name(path), config) in known


def test_the_first_bad_operation_of_the_first_bad_block_is_guilty():
    config = EDM2Config(**CONFIG)
    bad, good = difference(np.ones(3), np.zeros(3) + 2), difference(np.ones(3), np.ones(3))
    block = "unet.enc.8x8_block0"
    measurements = [
        judge("isolated", "seed0", "unet.dec.8x8_up/clip", bad, 0, STRICT),
        judge("isolated", "seed0", f"{block}/conv_res1", bad, 0, STRICT),
        judge("isolated", "seed0", f"{block}/silu0", bad, 0, STRICT),
        judge("isolated", "seed0", f"{block}/pixel_norm", good, 0, STRICT),
        judge("accumulated", "seed0", "unet.enc.4x4_down/clip", bad, 0, STRICT),
    ]
    first, second = guilty(config, measurements, [])
    assert (first.scope, first.operation) == (block, "silu0")
    assert (second.scope, second.operation) == ("unet.dec.8x8_up", "clip")
    blamed = guilty(config, measurements, [("unet.emb_noise.weight", "is transposed")])
    assert blamed[0] == Guilty(EMBEDDING, "emb_noise", "unet.emb_noise.weight is transposed")


def test_operations_are_in_the_order_of_computation():
    order = scopes(EDM2Config(**CONFIG))
    assert order["unet.enc.4x4_block0"] == (
        "conv_skip", "pixel_norm", "silu0", "conv_res0", "emb_linear", "modulation", "silu1", "dropout", "conv_res1",
        "res_sum", "attn_qkv", "qkv_norm", "attention", "attn_proj", "attn_sum", "clip",
    )  # fmt: skip
    assert order["unet.dec.8x8_block0"] == (
        "concat", "silu0", "conv_res0", "emb_linear", "modulation", "silu1", "dropout", "conv_res1", "conv_skip",
        "res_sum", "clip",
    )  # fmt: skip
    assert Tap("unet.dec.8x8_up", "resample") in taps(EDM2Config(**CONFIG))
