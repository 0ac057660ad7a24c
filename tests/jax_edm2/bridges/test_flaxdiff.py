"""FlaxDiff's own classes draw with a converted network what the mathematics says, and ours draw where they can."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flaxdiff import samplers, schedulers
from flaxdiff.inputs import DiffusionInputConfig
from flaxdiff.predictors import KarrasPredictionTransform
from flaxdiff.schedulers.cosine import CosineContinuousNoiseScheduler, CosineGeneralNoiseScheduler
from flaxdiff.schedulers.exp import ExpNoiseSchedule
from flaxdiff.schedulers.karras import EDMNoiseScheduler, SimpleExpNoiseScheduler
from flaxdiff.schedulers.sqrt import SqrtContinuousNoiseScheduler
from flaxdiff.trainer import ConditionalInputConfig, GeneralDiffusionTrainer

import jax_edm2
from jax_edm2.bridges import flaxdiff
from jax_edm2.network import UNet

SCHEDULES = {
    "Karras": schedulers.KarrasVENoiseScheduler(1000),
    "Karras with its default timesteps": schedulers.KarrasVENoiseScheduler(),
    "exponential": SimpleExpNoiseScheduler(1000),
    "general cosine": CosineGeneralNoiseScheduler(),
    "cosine": schedulers.CosineNoiseScheduler(1000),
    "linear": schedulers.LinearNoiseSchedule(1000),
    "linear with 200 steps": schedulers.LinearNoiseSchedule(200),
    "VP exponential": ExpNoiseSchedule(1000),
    "continuous cosine": CosineContinuousNoiseScheduler(),
    "square root": SqrtContinuousNoiseScheduler(),
}
KARRAS = SCHEDULES["Karras"]
NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32))


def gaussian(x, sigma):
    """The denoiser of data that is normal with standard deviation 0.5."""
    return x * (0.25 / (0.25 + sigma**2))


def mixture(x, sigma):
    """Of data that is -1 or 1, give or take 0.3: its trajectories bend."""
    return (0.09 * x + sigma**2 * jnp.tanh(x / (0.09 + sigma**2))) / (0.09 + sigma**2)


def drawn(kind, schedule=KARRAS, denoise=mixture, num_steps=16, noise=NOISE, **options):
    return flaxdiff.generate(flaxdiff.sampler(kind, denoise, schedule), noise, num_steps, **options)


def difference(ours, theirs):
    return float(jnp.abs(ours - theirs).max())


def added(key, count):
    """The noise of a sampler that takes some `count` times, [count, N, C, H, W]."""
    noises = []
    for _ in range(count):
        key, drawing = jax.random.split(key)
        noises.append(jnp.moveaxis(jax.random.normal(drawing, (3, 8, 8, 1)), -1, 1))
    return jnp.stack(noises)


class TheirEuler(samplers.DiffusionSampler):
    """The example of FlaxDiff's README, with a place for what release 0.2.11 gives it besides."""

    def take_next_step(
        self, current_samples, reconstructed_samples, pred_noise, current_step, state, next_step=None, **_others
    ):
        current_alpha, current_sigma = self.noise_schedule.get_rates(current_step)
        next_alpha, next_sigma = self.noise_schedule.get_rates(next_step)
        dt = next_sigma - current_sigma
        x_0_coeff = (current_alpha * next_sigma - next_alpha * current_sigma) / dt
        dx = (current_samples - x_0_coeff * reconstructed_samples) / current_sigma
        return current_samples + dx * dt, state


def test_flaxdiff_draws_digits(digits):
    denoise = jax.jit(jax_edm2.denoiser(*digits, jax.nn.one_hot(jnp.arange(3), 10)))
    *_, heun = jax_edm2.heun_states(denoise, NOISE, jax_edm2.noise_levels(32))
    euler = jax_edm2.euler(denoise, NOISE, jax_edm2.noise_levels(32))
    for kind, ours in ((samplers.HeunSampler, heun), (samplers.EulerSampler, euler), (TheirEuler, euler)):
        theirs = drawn(kind, denoise=denoise, num_steps=32)
        assert theirs.dtype == jnp.float32
        assert difference(ours, theirs) < 2e-6  # measured: 5.4e-7
        assert 1 < float(jnp.abs(theirs).max()) < 1.2  # neither clipped nor astray


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(name):
    """DDIM, and Euler's method as FlaxDiff has it, are Euler's in x / alpha and sigma / alpha (arXiv 2010.02502)."""
    schedule = SCHEDULES[name]
    sigmas = flaxdiff.noise_levels(schedule, 16)
    assert len(sigmas) == 17
    assert sigmas == sorted(set(sigmas), reverse=True)
    assert sigmas[-1] == 0
    assert 30 < sigmas[0] <= 80.001
    ours = jax_edm2.euler(mixture, NOISE, sigmas)
    for kind in (samplers.DDIMSampler, samplers.EulerSampler):
        # Measured: 7.6e-6 for the general cosine, whose tangents are rounded; else 8.3e-7.
        assert difference(ours, drawn(kind, schedule)) < (2e-5 if name == "general cosine" else 3e-6)


def test_the_schedules_levels_are_those_of_edm():
    np.testing.assert_allclose(flaxdiff.noise_levels(KARRAS, 32), jax_edm2.noise_levels(32), rtol=3e-6)


def test_heun_where_the_signal_rate_falls():
    """It is not ours in x / alpha, and converges to the same at the same order."""
    schedule = CosineContinuousNoiseScheduler()
    fine = jax_edm2.heun(gaussian, NOISE, flaxdiff.noise_levels(schedule, 500))
    errors = [difference(fine, drawn(samplers.HeunSampler, schedule, gaussian, steps)) for steps in (20, 40)]
    assert errors[1] < 2e-3  # measured: 9.1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # measured: 4.08


def test_simplified_euler():
    ours = jax_edm2.euler(mixture, NOISE, flaxdiff.noise_levels(KARRAS, 16))
    assert difference(ours, drawn(samplers.SimplifiedEulerSampler)) < 2e-6  # measured: 4.8e-7


def test_rk4():
    ours = jax_edm2.rk4(mixture, NOISE, flaxdiff.noise_levels(KARRAS, 16))
    assert (
        difference(ours, drawn(samplers.RK4Sampler)) < 4e-6
    )  # measured: 1.2e-6, of steps that follow from noise levels
    fine = jax_edm2.heun(mixture, NOISE, jax_edm2.noise_levels(500))
    assert difference(fine, drawn(samplers.RK4Sampler, num_steps=32)) < 2e-3  # measured: 5.3e-4


def adams_bashforth(denoise, noise, sigmas, third):
    """The two-step method, and `third` times the cubic term that is left of the polynomial through three slopes."""
    x, before = sigmas[0] * noise, []
    for sigma, end in itertools.pairwise(sigmas[:-1]):
        h, slope = end - sigma, (x - denoise(x, sigma)) / sigma
        x = x + h * slope
        if before:
            (last, there), bend = before[-1], 0
            change = (slope - there) / (sigma - last)
            x = x + h**2 / 2 * change
            if before[1:]:
                older, earlier = before[-2]
                bend = (change - (there - earlier) / (last - older)) / (sigma - older)
                x = x + third * h**3 * bend
        before.append((sigma, slope))
    return denoise(x, sigmas[-2])


def test_what_multistep_dpm_is():
    """Adams' and Bashforth's two-step method in sigma, with a part of the third order's term: of second order."""
    sigmas = flaxdiff.noise_levels(KARRAS, 24)
    theirs = drawn(samplers.MultiStepDPM, num_steps=24)
    assert difference(adams_bashforth(mixture, NOISE, sigmas, 1 / 3), theirs) < 3e-6  # measured: 8.3e-7
    assert difference(adams_bashforth(mixture, NOISE, sigmas, 0), theirs) > 1e-3  # measured: 6.6e-3
    assert difference(jax_edm2.dpmpp_2m(mixture, NOISE, sigmas), theirs) > 1e-2  # measured: 7.1e-2
    fine = jax_edm2.heun(gaussian, NOISE, jax_edm2.noise_levels(500))
    errors = [difference(fine, drawn(samplers.MultiStepDPM, denoise=gaussian, num_steps=n)) for n in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)  # measured: 4.13


def test_a_sampler_draws_the_same_again():
    """MultiStepDPM would begin with the slopes of what it drew before."""
    sampler = flaxdiff.sampler(samplers.MultiStepDPM, mixture, KARRAS)
    np.testing.assert_array_equal(flaxdiff.generate(sampler, NOISE, 5), flaxdiff.generate(sampler, NOISE, 5))


def test_ancestral_sampling():
    key = jax.random.key(5)
    theirs = drawn(samplers.EulerAncestralSampler, key=key)
    ours = jax_edm2.ancestral(mixture, NOISE, flaxdiff.noise_levels(KARRAS, 16), added(key, 15))
    assert difference(ours, theirs) < 1.5e-5  # measured: 5.1e-6
    assert difference(theirs, drawn(samplers.EulerAncestralSampler, key=jax.random.key(6))) > 0.1


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddpm_is_ancestral(name):
    """DDPM's posterior, in x / alpha and sigma / alpha; SimpleDDPMSampler can leave steps out."""
    key = jax.random.key(7)
    theirs = drawn(samplers.SimpleDDPMSampler, SCHEDULES[name], key=key)
    ours = jax_edm2.ancestral(mixture, NOISE, flaxdiff.noise_levels(SCHEDULES[name], 16), added(key, 15))
    assert difference(ours, theirs) < 6e-6  # measured: 2.1e-6

    kind = {"cosine": schedulers.CosineNoiseScheduler, "linear": schedulers.LinearNoiseSchedule}[name]
    schedule, steps = kind(40), {"cosine": 39, "linear": 34}[name]
    with pytest.raises(ValueError, match=f"DDPMSampler leaves no step out: num_steps must be {steps}"):
        drawn(samplers.DDPMSampler, schedule)
    theirs = drawn(samplers.DDPMSampler, schedule, num_steps=steps, key=key)
    ours = jax_edm2.ancestral(mixture, NOISE, flaxdiff.noise_levels(schedule, steps), added(key, steps - 1))
    assert difference(ours, theirs) < 3e-5  # measured: 9.4e-6


def test_guidance_within_an_interval():
    """Which takes one noise level, where FlaxDiff has one for each image."""
    guided = jax_edm2.guided(mixture, gaussian, 1.7, (0.3, 3.0))
    ours = jax_edm2.euler(guided, NOISE, flaxdiff.noise_levels(KARRAS, 8))
    assert difference(ours, drawn(samplers.DDIMSampler, denoise=guided, num_steps=8)) < 3e-6  # measured: 7.2e-7


def test_channels_come_first():
    variance = jnp.asarray([0.1, 0.5, 1.0])[:, None, None]
    noise = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 4, 4), np.float32))

    def coloured(x, sigma):
        return x * (variance / (variance + sigma**2))

    ours = jax_edm2.heun(coloured, noise, flaxdiff.noise_levels(KARRAS, 6))
    assert difference(ours, drawn(samplers.HeunSampler, denoise=coloured, num_steps=6, noise=noise)) < 3e-6


def test_it_prints_nothing(capsys):
    drawn(samplers.DDIMSampler, num_steps=2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kind", "schedule", "options", "message"),
    [
        ("EulerSampler", EDMNoiseScheduler(1), {}, "is for training"),
        ("SimplifiedEulerSampler", SCHEDULES["cosine"], {}, "leaves out the signal rate of CosineNoiseScheduler"),
        ("EulerAncestralSampler", SCHEDULES["linear"], {}, "leaves out the signal rate of LinearNoiseSchedule"),
        ("MultiStepDPM", SCHEDULES["square root"], {}, "leaves out the signal rate of SqrtContinuousNoiseScheduler"),
        ("SimpleDDPMSampler", KARRAS, {}, "adds no noise where the signal rate is 1, as in KarrasVENoiseScheduler"),
        ("DDPMSampler", KARRAS, {}, "takes a discrete schedule, which has a posterior, not KarrasVENoiseScheduler"),
        ("RK4Sampler", SCHEDULES["exponential"], {}, "takes KarrasVENoiseScheduler"),
        ("DDIMSampler", KARRAS, {"eta": 0.5}, "fails with eta > 0"),
        ("HeunSampler", KARRAS, {"guidance_scale": 2.0}, "guidance belongs to denoise"),
    ],
)
def test_what_it_refuses(kind, schedule, options, message):
    with pytest.raises(ValueError, match=message):
        flaxdiff.sampler(getattr(samplers, kind), gaussian, schedule, **options)


def test_too_many_steps():
    with pytest.raises(ValueError, match="num_steps must be 1 to 183 for LinearNoiseSchedule up to noise level 80"):
        drawn(samplers.DDIMSampler, SCHEDULES["linear with 200 steps"], num_steps=300)
    with pytest.raises(ValueError, match="not 0"):
        flaxdiff.noise_levels(KARRAS, 0)


class RawNetwork:
    """What FlaxDiff trains: F(c_in x; ln(sigma) / 4, labels) [N, H, W, C], of parameters that were converted."""

    def __init__(self, net, variables):
        self.unet = UNet(net.config)
        self.params, self.constants = variables["params"]["unet"], variables["constants"]["unet"]

    def init(self, _key, **_inputs):
        return self.params

    def apply(self, params, x, t, labels):
        variables = {"params": params, "constants": self.constants}
        return self.unet.apply(variables, x.transpose(0, 3, 1, 2), t, labels).transpose(0, 2, 3, 1)


class OneHot:
    """In the place of FlaxDiff's text encoder: labels are encoded already, and no text is no class."""

    key = "labels"

    def __call__(self, texts):
        return jnp.zeros((len(texts), 10))

    def encode_from_tokens(self, labels):
        return labels


@pytest.mark.filterwarnings("ignore")
def test_flaxdiff_trains_a_converted_network(digits, tmp_path):
    """The training example of its README: EDMNoiseScheduler, KarrasPredictionTransform, Adam, and a trainer's `fit`.

    DiffusionTrainer itself cannot be traced in 0.2.11 (it slices by a count that is traced): this is its successor.
    """
    net, variables = digits
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)
    rng = np.random.default_rng(0)
    classes = jnp.eye(10)[rng.integers(0, 10, 16)]
    seeds, settings = jax.random.normal(jax.random.key(0), (16, 1, 8, 8)), jax_edm2.Settings(num_steps=8)
    drawn = jax_edm2.sample(net, variables, seeds, classes, settings=settings)  # what it knows
    batch = {"image": np.asarray(jnp.moveaxis(drawn * 127.5 + 127.5, 1, -1)), "labels": np.asarray(classes)}
    with jax.numpy_dtype_promotion("standard"):
        trainer = GeneralDiffusionTrainer(
            RawNetwork(net, variables), optax.adam(2e-4), EDMNoiseScheduler(1, sigma_max=80, rho=7, sigma_data=0.5),
            DiffusionInputConfig("image", (8, 8, 1), [ConditionalInputConfig(OneHot(), pretokenized=True)]),
            jax.random.PRNGKey(4), model_output_transform=KarrasPredictionTransform(sigma_data=0.5),
            checkpoint_base_path=str(tmp_path), distributed_training=False,
        )  # fmt: skip
        trainer.wandb = None  # which fit looks at, and the constructor sets only where there is one
        trainer._define_validation_step = lambda **_options: None
        data = {"train": lambda: itertools.repeat(batch), "local_batch_size": 16}
        trainer.fit(data, 8, 2, val_steps_per_epoch=0)
    assert trainer.best_loss < 0.35  # measured: 0.28, where F = 0 gives half a unit of variance
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trainer.state.params, variables["params"]["unet"])
    assert 0 < max(jax.tree.leaves(moved)) < 1e-2
