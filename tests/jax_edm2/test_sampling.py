"""Samplers, guidance and churn give what torch_ref's own loops give, option by option."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict

import jax_edm2
from jax_edm2.converter.names import jax_path
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.generation import Draw
from jax_edm2.golden.digits import load_network
from jax_edm2.samplers import dpmpp_2m
from jax_edm2.sampling import denoiser, euler, guided, heun, heun_states, sample
from jax_edm2.settings import Churn, Settings, noise_levels
from jax_edm2.torch_ref import sampling as reference
from jax_edm2.torch_ref.network import Precond
from tests.support.networks import network
from tests.support.samples import OPTIONS, with_jax, with_torch

FUSED = {"xla_cpu_use_fusion_emitters": True}  # as users have it: then two programs may agree to the bit
SEEDS = 16  # `make sampling` takes 256
BOUND = 1e-4  # of pixels from -1 to 1; measured for 256 seeds: 4e-5 (one step from sigma 80 at once), else 2e-5


@pytest.fixture(scope="session")
def torch_networks(digits_pkl, digits_guide_pkl):
    return load_network(digits_pkl), load_network(digits_guide_pkl)


@pytest.mark.parametrize("name", OPTIONS)
def test_samples_are_those_of_torch_ref(name, digits, digits_guide, torch_networks):
    settings = OPTIONS[name]
    draw = Draw.of(digits[0].config, range(SEEDS), rng="torch-cpu", churn_draws=settings.churn_draws)
    ours, theirs = with_jax(digits, digits_guide, draw, settings), with_torch(*torch_networks, draw, settings)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < BOUND


@pytest.mark.parametrize(
    ("steps", "low", "high", "rho"), [(32, 0.002, 80.0, 7.0), (5, 0.01, 30.0, 5.0), (64, 1.0, 2.0, 1.0)]
)
def test_the_schedule_is_that_of_generate_images(steps, low, high, rho):
    """Worked out by torch in float32; its powers may differ by one unit in the last place."""
    ramp = torch.arange(steps, dtype=torch.float32) / (steps - 1)
    theirs = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    ours = Settings(num_steps=steps, sigma_min=low, sigma_max=high, rho=rho).sigmas
    assert len(ours) == steps + 1
    assert ours[-1] == 0
    np.testing.assert_allclose(ours[:-1], theirs, rtol=1.3e-7)  # measured: 0.8e-7, one unit of the last place


def test_one_step_goes_from_sigma_max_to_the_denoised_image():
    """The published formula divides by N - 1: the one level is sigma_max, and Heun's step to 0 is Euler's."""
    for levels in (noise_levels(1), reference.noise_levels(1)):
        assert levels == pytest.approx([80.0, 0.0], rel=1e-14)
    noise = np.linspace(-2, 2, 5, dtype=np.float32).reshape(5, 1, 1, 1)
    ours = list(heun_states(gaussian, jnp.asarray(noise), noise_levels(1)))
    theirs = list(reference.heun_states(gaussian, torch.from_numpy(noise), reference.noise_levels(1)))
    assert len(ours) == len(theirs) == 2
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5)  # D is a 25,000th of x, and the difference of x and x - D
    np.testing.assert_allclose(ours[1], gaussian(80 * noise, 80.0), rtol=0.01)


def gaussian(x, sigma):
    """The denoiser of data that is normal with standard deviation 0.5: its trajectories are known."""
    return x * (0.25 / (0.25 + sigma**2))


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_samplers_converge_at_their_order(sampler, order):
    with jax.enable_x64(True):
        noise = jnp.linspace(-2, 2, 5, dtype=jnp.float64).reshape(5, 1, 1, 1)
        exact = noise * 80 * 0.5 / math.hypot(80, 0.5)
        errors = [float(jnp.abs(sampler(gaussian, noise, noise_levels(n)) - exact).max()) for n in (128, 256)]
    assert errors[1] < 2e-2
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)  # measured: 5.5 %


def test_the_states_are_those_of_the_compiled_sampler():
    noise = jnp.linspace(-2, 2, 8).reshape(2, 1, 2, 2)
    states = list(heun_states(gaussian, noise, noise_levels(7)))
    assert len(states) == 8
    assert np.array_equal(states[0], noise * 80)
    np.testing.assert_allclose(states[-1], heun(gaussian, noise, noise_levels(7)), rtol=3e-6)  # measured: 1e-6


def test_the_network_is_traced_once():
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return gaussian(x, sigma)

    noise = jnp.ones((1, 1, 1, 1))
    for sampler in (heun, euler, dpmpp_2m):
        jax.jit(sampler, static_argnums=(0, 2))(denoise, noise, tuple(noise_levels(32)))
        assert len(calls) == 1
        calls.clear()


def test_the_guide_is_not_evaluated_outside_its_interval():
    seen = []

    def guide(x, sigma):
        jax.debug.callback(lambda value: seen.append(float(value)), sigma)
        return x * 0

    jax.block_until_ready(heun(guided(gaussian, guide, 2.0, (0.3, 3.0)), jnp.ones((1, 1, 1, 1)), noise_levels(16)))
    jax.effects_barrier()
    levels = [level for level in noise_levels(16) if 0.3 < level <= 3.0]
    assert sorted(seen) == pytest.approx(sorted(levels * 2), rel=9e-8)  # each ends and starts a step; measured: 3e-8
    assert guided(gaussian, guide, 1.0) is gaussian


def test_churn_is_drawn_where_nvlabs_draws_it():
    """generate_images.py compares levels in float32: a bound that is a level belongs to the interval."""
    sigmas = noise_levels(8)
    level = sigmas[3]
    assert Settings(churn=Churn(4.0, S_min=0.002)).churn_draws == 31  # the last level is 0.0019999996 there
    assert Churn(4.0, S_min=level, S_max=level).draws(sigmas) == 1
    assert Churn(4.0, S_min=level * (1 + 1e-9), S_max=80.0).draws(sigmas) == 4  # the same level in float32
    assert Churn(0.0).draws(sigmas) == 0
    with pytest.raises(ValueError, match=r"take churn_noise \[8, N, C, H, W\]"):
        heun(gaussian, jnp.ones((1, 1, 1, 1)), sigmas, Churn(4.0))


def test_nvlabs_rounding_of_gains(digits_pkl, digits, digits_checkpoint):
    """A network whose gains stay float16 divides them in float16, and nvlabs_gains does the same to variables."""
    with read_snapshot(digits_pkl) as snapshot:
        half = Precond(**snapshot.init_kwargs).half().eval()
        half.load_state_dict({name: torch.from_numpy(snapshot.read(name)) for name in snapshot.tensors})
    draw = Draw.of(digits[0].config, range(SEEDS), rng="torch-cpu")
    theirs = with_torch(half, None, draw, Settings())
    rounded = digits[0], jax_edm2.nvlabs_gains(digits[1])
    assert np.abs(with_jax(rounded, None, draw, Settings()) - theirs).max() < 6e-6  # measured: 2e-6
    assert np.abs(with_jax(digits, None, draw, Settings()) - theirs).max() > 5e-5  # measured: 8e-5
    same = jax_edm2.nvlabs_gains(jax_edm2.load(digits_checkpoint, dtype=jnp.float32)[1])
    assert same["params"]["unet"]["out_gain"] == digits[1]["params"]["unet"]["out_gain"].astype(jnp.float32)


@pytest.mark.parametrize("fan_in", [7, 64, 128, 192 * 9, 768])
def test_gains_are_rounded_as_torch_rounds_them(fan_in):
    gains = np.random.default_rng(0).uniform(-2, 2, 500).astype(np.float16)
    exact = [(torch.tensor(gain) / np.sqrt(fan_in)).item() for gain in gains]
    weight = jnp.zeros((3, fan_in))
    for gain, value in zip(gains, exact, strict=True):
        tree = {"params": {"unet": {"out_gain": jnp.asarray(gain), "out_conv": {"mpconv_weight": weight}}}}
        rounded = jax_edm2.nvlabs_gains(tree)["params"]["unet"]["out_gain"]
        assert np.float16(rounded / math.sqrt(fan_in)) == np.float16(value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "ddim"}, "sampler must be one of heun, euler, dpmpp-2m, dpmpp-2m-sde, ancestral, rk4"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min <= sigma_max, not 3 and 2"),
        ({"rho": 0.0}, "rho must be positive"),
        ({"guidance": math.nan}, "guidance must be finite"),
        ({"interval": (2.0, 1.0)}, "0 <= lo < hi"),
        ({"churn": Churn(-1.0)}, "S_churn must be 0 or more"),
        ({"churn": Churn(1.0), "sampler": "dpmpp-2m"}, "churn is for the samplers heun and euler, not dpmpp-2m"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Settings(**wrong)


def test_schedules_beyond_float32():
    for wrong in ({"rho": 0.001}, {"sigma_min": 1e-50}, {"sigma_max": 1e39}):
        with pytest.raises(ValueError, match="the schedule's noise levels are beyond float32"):
            Settings(**wrong)
    level = Settings(sampler="dpmpp-2m", sigma_min=2.0, sigma_max=2.0, num_steps=3).sigmas
    assert np.isfinite(dpmpp_2m(gaussian, jnp.ones((1, 1, 1, 1)), level)).all()


def test_what_sample_refuses(digits):
    noise, labels = jnp.zeros((2, 1, 8, 8)), jnp.zeros((2, 10))
    churn = Settings(num_steps=4, churn=Churn(8.0))
    with pytest.raises(ValueError, match=r"take churn_noise \[4, 2, 1, 8, 8\], not \[0, 2, 1, 8, 8\]"):
        sample(*digits, noise, labels, settings=churn)
    with pytest.raises(ValueError, match=r"take churn_noise \[0, 2, 1, 8, 8\], not \[4, 2, 1, 8, 8\]"):
        sample(*digits, noise, labels, churn_noise=jnp.zeros((4, 2, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"noise must be \[N, 1, 8, 8\], not \[2, 1, 16, 16\]"):
        sample(*digits, jnp.zeros((2, 1, 16, 16)), labels)
    with pytest.raises(ValueError, match=r"labels must be one-hot \[2, 10\], not \[3, 10\]"):
        sample(*digits, noise, jnp.zeros((3, 10)))
    assert hash(Settings(interval=[0.3, 3.0])) == hash(Settings(interval=(0.3, 3.0)))


def test_a_guide_must_fit(digits):
    net, variables = digits
    noise = jnp.zeros((1, 1, 8, 8))
    other = jax_edm2.Precond(jax_edm2.EDM2Config(16, 1, 10, model_channels=8, channel_mult=(1,), channels_per_head=8))
    with pytest.raises(ValueError, match="the guide has img_resolution 16, and the network 8"):
        sample(net, variables, noise, guide=(other, {}), settings=Settings(guidance=2.0))
    with pytest.raises(ValueError, match="guidance 2 needs a guide"):
        sample(net, variables, noise, settings=Settings(guidance=2.0))


def small(seed: int):
    """A random network of the digits' shape, which compiles in a third of their time, and its variables."""
    kwargs = {"model_channels": 16, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8], "logvar_channels": 8}
    config = jax_edm2.EDM2Config(8, 1, 10, channels_per_head=16, **kwargs)
    weights = network(config.to_json(), seed).state_dict()
    leaves = {jax_path(name): jnp.asarray(value.numpy()) for name, value in weights.items()}
    return jax_edm2.Precond(config), unflatten_dict(leaves, sep="/")


def test_denoiser_is_equation_3():
    """Of networks as they are and of folded ones; outside of the interval it is the network alone."""
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8), np.float32)
    labels = jnp.eye(10)[:2]
    loaded, jit = (small(1), small(2)), partial(jax.jit, compiler_options=FUSED)
    for net, guide in (loaded, [jax_edm2.fold(*each) for each in loaded]):
        plain, other = (jit(denoiser(*each, labels)) for each in (net, guide))
        mixed = jit(denoiser(*net, labels, guide=guide, guidance=1.7, interval=(0.3, 3.0)))
        expected = 1.7 * plain(x, 3.0) - 0.7 * other(x, 3.0)
        assert mixed(x, 3.0).dtype == jnp.float32
        np.testing.assert_allclose(mixed(x, 3.0), expected, rtol=0, atol=7.2e-7)  # measured: 2.4e-7
        np.testing.assert_array_equal(mixed(x, 0.3), plain(x, 0.3))
        assert np.abs(plain(x, 3.0) - other(x, 3.0)).max() > 1e-2
    unconditional = denoiser(*loaded[0])
    np.testing.assert_array_equal(unconditional(x, 3.0), loaded[0][0].apply(loaded[0][1], x, 3.0))


def test_what_a_denoiser_refuses(digits):
    other = jax_edm2.Precond(jax_edm2.EDM2Config(8, 1, 5, model_channels=8, channel_mult=(1,), channels_per_head=8))
    with pytest.raises(ValueError, match=r"guidance 1\.5 needs a guide"):
        denoiser(*digits, guidance=1.5)
    with pytest.raises(ValueError, match="the guide has label_dim 5, and the network 10"):
        denoiser(*digits, guide=(other, {}), guidance=1.5)
    denoiser(*digits, guide=(other, {}))  # a guide that is not asked may be any


def test_a_network_guides_itself(digits):
    """Classifier-free guidance (arXiv 2207.12598): w D(x; sigma, c) + (1 - w) D(x; sigma)."""
    net, variables = digits
    draw = Draw.of(net.config, range(4))
    x, labels = jnp.asarray(draw.noise), jax.nn.one_hot(draw.classes, 10)
    ours = jax.jit(denoiser(net, variables, labels, guidance=3.0, unconditional=True))(x, 2.0)
    alone = [jax.jit(denoiser(net, variables, given))(x, 2.0) for given in (labels, None)]
    assert np.abs(alone[0] - alone[1]).max() > 0.01  # labels matter
    np.testing.assert_allclose(ours, 3 * alone[0] - 2 * alone[1], rtol=0, atol=4e-6)  # measured: 9.5e-7

    settings = Settings(num_steps=2, guidance=3.0, unconditional=True)
    samples = sample(net, variables, x, labels, settings=settings)
    denoise = denoiser(net, variables, labels, guide=digits, guidance=3.0, unconditional=True)
    # Far from pictures: this network was trained with labels alone.
    theirs = jax.jit(lambda x: heun(denoise, x, settings.sigmas))(x)
    assert np.abs(samples - theirs).max() < 2e-5 * np.abs(theirs).max()  # measured: 6.3e-6
    unlabelled = jax_edm2.Precond(jax_edm2.EDM2Config(8, 1, 0))
    with pytest.raises(ValueError, match="this one has none"):
        denoiser(unlabelled, {}, guidance=2, unconditional=True)
