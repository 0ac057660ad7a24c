"""The PyTorch side's own arithmetic: schedules, averages, loss, half precision, and the random snapshot command."""

import numpy as np
import pytest
import torch

from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.torch_ref import snapshot
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder, StandardRGBEncoder
from jax_edm2.torch_ref.network import Precond, normalize
from jax_edm2.torch_ref.sampling import heun, noise_levels
from jax_edm2.torch_ref.training import EDM2Loss, PowerFunctionEMA, learning_rate, power_function_exponent
from tests.jax_edm2.test_parity import CONFIG
from tests.support.networks import network


def test_learning_rate_ramps_up_then_decays_as_inverse_square_root():
    def rate(nimg):
        return learning_rate(nimg, batch_size=10, ref_lr=0.01, ref_batches=100, rampup_nimg=500)

    assert [rate(0), rate(250), rate(500), rate(1000)] == pytest.approx([0, 0.005, 0.01, 0.01])
    assert rate(4000) == pytest.approx(0.005)


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.10, 6.94)])  # Section 3.1 of the paper
def test_power_function_exponents_of_the_paper(std, gamma):
    exponent = power_function_exponent(std)
    assert exponent == pytest.approx(gamma, abs=0.005)
    assert np.sqrt((exponent + 1) / (exponent + 2) ** 2 / (exponent + 3)) == pytest.approx(std)


def test_ema_weighs_parameters_by_the_power_of_time():
    net = torch.nn.Linear(1, 1, bias=False)
    ema = PowerFunctionEMA(net, stds=[0.1])
    values = np.random.default_rng(0).standard_normal(400)
    for step, value in enumerate(values, start=1):
        torch.nn.init.constant_(net.weight, value)
        ema.update(nimg=step * 8, batch_size=8)
    gamma = power_function_exponent(0.1)
    edges = (np.arange(401) / 400) ** (gamma + 1)  # the integral of t^gamma, normalised
    assert ema.nets[0].weight.item() == pytest.approx(np.sum(np.diff(edges) * values), abs=1e-8)  # measured: 3.4e-9


def test_training_normalises_the_stored_weights():
    net = Precond(**CONFIG).train()
    with torch.no_grad():
        net.unet.out_conv.weight *= 3
    loss = EDM2Loss()(net, torch.randn(2, 3, 16, 16), torch.eye(5)[:2])
    assert loss.shape == (2, 3, 16, 16)
    weight = net.unet.out_conv.weight.detach()
    torch.testing.assert_close(weight, normalize(weight), atol=0, rtol=2e-4)  # eps = 1e-4; measured: 0.7e-4


def test_loss_at_the_optimum_is_one_plus_logvar():
    """With D = 0, images = 0 and u = ln(weight sigma_data^2 ...) fixed, the loss is what Eq. 21 says."""

    def net(x, sigma, labels, return_logvar):
        return torch.zeros_like(x), torch.full([len(x), 1, 1, 1], 0.7)

    images = torch.full([64, 1, 2, 2], 0.3)
    torch.manual_seed(1)
    loss = EDM2Loss(P_mean=0.5, P_std=0.0, sigma_data=0.5)(net, images)
    sigma = np.exp(0.5)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(loss, torch.full_like(loss, weight / np.exp(0.7) * 0.09 + 0.7))


def test_heun_is_second_order():
    """For Gaussian data of standard deviation s, D = x s^2 / (s^2 + sigma^2) and the solution is known."""
    s, noise = 0.5, torch.randn(64, 1, 1, 1, dtype=torch.float64)

    def error(steps):
        sigmas = noise_levels(steps)
        exact = noise * sigmas[0] * np.sqrt(s**2 / (s**2 + sigmas[0] ** 2))
        drawn = heun(lambda x, sigma: x * s**2 / (s**2 + sigma.double() ** 2), noise, sigmas)
        return (drawn - exact).abs().max().item()

    assert noise_levels()[0] == pytest.approx(80)
    assert noise_levels()[31:] == pytest.approx([0.002, 0])
    assert 3 < error(32) / error(64) < 5


def test_encoders():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    encoder = StandardRGBEncoder()
    torch.testing.assert_close(encoder.decode(encoder.encode(pixels)).int(), pixels.int(), atol=0, rtol=0)
    vae = StabilityVAEEncoder()
    mean = torch.tensor([5.81, 3.25, 0.12, -2.15]).reshape(1, 4, 1, 1)
    latents = vae.encode_latents(torch.cat([mean, torch.zeros_like(mean)], dim=1))
    torch.testing.assert_close(latents, torch.zeros(1, 4, 1, 1), atol=0, rtol=0)


def test_float64_is_float64_throughout():
    net = network(CONFIG).double()
    x, sigma = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0.5, 1.0], dtype=torch.float64)
    denoised, logvar = net(x, sigma, return_logvar=True)
    assert denoised.dtype == logvar.dtype == torch.float64
    nudged = net(x, sigma * (1 + 1e-12))  # a change that float32 anywhere on the way would lose
    assert 1e-14 < (nudged - denoised).abs().max() < 1e-8


def test_half_precision_embeds_in_float32():
    net = network(CONFIG)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 1.0])
    half, full = net(x, sigma, dtype=torch.bfloat16, return_logvar=True), net(x, sigma, return_logvar=True)
    assert half[0].dtype == torch.float32
    assert 1e-4 < (half[0] - full[0]).norm() / full[0].norm() < 0.1
    assert torch.equal(half[1], full[1])


def test_random_snapshot_of_a_published_size(tmp_path, capsys):
    narrow = {"xs": 64, "m": 256}  # the same network with half the channels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "SIZES", narrow)
        snapshot.main(["edm2-img512-xs", "-o", str(tmp_path / "x.pkl"), "--seed", "3"])
    with read_snapshot(tmp_path / "x.pkl") as opened:
        assert len(opened.tensors) == 203
        assert opened.encoder.kind == "StabilityVAEEncoder"
        gains = [float(opened.read(name)) for name in opened.tensors if name.endswith("gain")]
        assert len(gains) == 37
        assert all(0.5 <= gain <= 1.5 for gain in gains)
    for name in ("edm2-img512-huge", "edm3-img512-s", "edm2-img512-s-cond"):
        with pytest.raises(SystemExit) as error:
            snapshot.main([name, "-o", str(tmp_path / "y.pkl")])
        assert error.value.code == 2
    assert not (tmp_path / "y.pkl").exists()
