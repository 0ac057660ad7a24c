"""FlaxDiff's samplers and noise schedules on a converted network (github.com/AshishKumar4/FlaxDiff, release 0.2.11).

    denoise = jax_edm2.denoiser(net, variables, labels)
    sampler = flaxdiff.sampler(HeunSampler, denoise, KarrasVENoiseScheduler(1000))
    images = flaxdiff.generate(sampler, noise, num_steps=32)

FlaxDiff's x is alpha x0 + sigma_t noise, with the signal rate alpha and the noise rate sigma_t of its schedule at a
step; an EDM2 network denoises x / alpha at the noise level sigma_t / alpha. FlaxDiff is imported when it is used.
"""

import contextlib
import copy
import inspect
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.method import Denoise
from jax_edm2.settings import Settings
from jax_edm2.shapes import Images


@dataclass(frozen=True)
class _Model:
    """What FlaxDiff takes for a model; it predicts x0."""

    denoise: Denoise
    schedule: Any

    def apply(self, _params: Any, x: jax.Array, steps: jax.Array) -> jax.Array:
        """x [N, H, W, C]; steps [N], the same for all, as samplers have them."""
        alpha, sigma = (rate.reshape(()) for rate in self.schedule.get_rates(steps[:1]))
        return jnp.moveaxis(self.denoise(jnp.moveaxis(x / alpha, -1, 1), sigma / alpha), 1, -1)


def sampler(kind: type, denoise: Denoise, schedule: Any, **options: Any) -> Any:
    """An instance of `kind`, one of FlaxDiff's samplers or a DiffusionSampler of your own, that draws with `denoise`.

    denoise(x, sigma) -> D takes x [N, C, H, W] and one noise level: `jax_edm2.denoiser` makes it, with labels and
    guidance. schedule: one of FlaxDiff's. options: other arguments of `kind`.
    It does not clip what it draws, as FlaxDiff does even to latents, and the network is told the schedule's own noise
    level, not a step rounded to an integer. RK4Sampler and DDPMSampler, which fail in FlaxDiff 0.2.11, run.
    Raises: ValueError for a kind and a schedule that together do not sample the network's distribution, and for options
    that belong to `denoise`.
    """
    from flaxdiff.inputs import DiffusionInputConfig
    from flaxdiff.predictors import DirectPredictionTransform

    _check(kind, schedule, options)
    schedule = copy.copy(schedule)
    schedule.transform_inputs = lambda x, steps: (x, steps)  # each schedule makes something else of them
    if hasattr(schedule, "posterior_log_variance_clipped"):  # FlaxDiff's own takes int() of an array
        schedule.get_posterior_variance = lambda steps: jnp.exp(
            0.5 * schedule.posterior_log_variance_clipped[jnp.int32(steps)]
        ).reshape(-1, 1, 1, 1)
    made = kind(
        model=_Model(denoise, schedule),
        noise_schedule=schedule,
        model_output_transform=DirectPredictionTransform(),
        input_config=DiffusionInputConfig("image", (0, 0, 0), []),
        **options,
    )
    made.post_process = lambda samples: samples  # in place of clipping
    if hasattr(made, "get_derivative"):  # RK4's is a jitted function with a function among its arguments
        made.get_derivative = inspect.unwrap(made.get_derivative)
    return made


def generate(
    sampler: Any,
    noise: Images,
    num_steps: int = Settings.num_steps,
    *,
    sigma_max: float = Settings.sigma_max,
    key: jax.Array | None = None,
) -> Images:
    """What FlaxDiff's `generate_samples` draws: [N, C, H, W], images from -1 to 1 or latents, not clipped.

    sampler: of `sampler`. noise: unit noise [N, C, H, W], of which x is made at the first of `noise_levels`.
    num_steps, sigma_max: as there. key: of `jax.random`, for samplers that add noise; FlaxDiff's own by default.
    The denoiser is evaluated once for every step, by HeunSampler twice and by RK4Sampler four times; but for the last
    step, which ends at x0 = D.
    Raises: ValueError as `noise_levels`, and for DDPMSampler where steps are left out.
    """
    from flaxdiff.samplers import DDPMSampler
    from flaxdiff.utils import RandomMarkovState

    schedule = sampler.noise_schedule
    steps = _steps(schedule, num_steps, sigma_max)
    if isinstance(sampler, DDPMSampler) and (steps[0] - steps[-1]) != len(steps) - 1:
        raise ValueError(f"DDPMSampler leaves no step out: num_steps must be {round(steps[0] - steps[-1]) + 1}")
    if hasattr(sampler, "history"):
        sampler.history.clear()  # MultiStepDPM would go on from the end of what it drew before
    # FlaxDiff mixes integers and floats, and prints.
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(sys.stderr):
        _, sigma = schedule.get_rates(steps[:1])
        samples = sampler.generate_samples(
            params=None,
            num_samples=len(noise),
            resolution=noise.shape[-1],
            steps_override=steps * (1000 / schedule.max_timesteps),
            priors=jnp.moveaxis(noise, 1, -1) * sigma,
            rngstate=None if key is None else RandomMarkovState(key),
        )
    return jnp.moveaxis(samples, -1, 1)


def noise_levels(
    schedule: Any, num_steps: int = Settings.num_steps, *, sigma_max: float = Settings.sigma_max
) -> list[float]:
    """The noise levels sigma_t / alpha of a FlaxDiff schedule, falling, and a final 0: num_steps + 1, for any sampler.

    They are evenly spaced among its steps, from the highest level that is not above sigma_max to the lowest above 0.
    (FlaxDiff rounds steps to integers, and begins where a network was not trained, or where alpha is 0.)
    Raises: ValueError if there are not as many.
    """
    with jax.numpy_dtype_promotion("standard"):
        alpha, sigma = schedule.get_rates(_steps(schedule, num_steps, sigma_max))
        return [*(sigma / alpha).ravel().tolist(), 0.0]


def _steps(schedule: Any, num_steps: int, sigma_max: float) -> np.ndarray:
    """Steps from 0 to schedule.max_timesteps, falling."""
    from flaxdiff.schedulers import DiscreteNoiseScheduler
    from flaxdiff.schedulers.karras import SimpleExpNoiseScheduler

    last, tabulated = schedule.max_timesteps, isinstance(schedule, DiscreteNoiseScheduler | SimpleExpNoiseScheduler)
    grid = np.arange(last) + 0.5 if tabulated else np.linspace(0, last, 1001)  # tables are indexed by what is truncated
    with jax.numpy_dtype_promotion("standard"):
        alpha, sigma = (np.asarray(rate).ravel() for rate in schedule.get_rates(grid))
    usable = grid[(alpha > 0) & (sigma > 0) & (sigma <= sigma_max * alpha * (1 + 1e-5))]
    if not 1 <= num_steps <= (len(usable) if tabulated else np.inf) or not len(usable):
        raise ValueError(
            f"num_steps must be 1 to {len(usable)} for {type(schedule).__name__} up to noise level {sigma_max:g}, "
            f"not {num_steps}"
        )
    if tabulated:
        return usable[np.linspace(len(usable) - 1, 0, num_steps).round().astype(int)]
    return np.linspace(usable[-1], usable[0], num_steps)


def _check(kind: type, schedule: Any, options: dict[str, Any]):
    from flaxdiff import samplers, schedulers
    from flaxdiff.schedulers.karras import EDMNoiseScheduler

    exploding = isinstance(schedule, schedulers.GeneralizedNoiseScheduler)  # alpha is 1
    name, scheduled = kind.__name__, type(schedule).__name__
    unscaled = (samplers.SimplifiedEulerSampler, samplers.EulerAncestralSampler, samplers.MultiStepDPM)
    for wrong, why in (
        (
            isinstance(schedule, EDMNoiseScheduler),
            "EDMNoiseScheduler is for training: its steps end at noise level 1; KarrasVENoiseScheduler is for sampling",
        ),
        (
            issubclass(kind, unscaled) and not exploding,
            f"{name} leaves out the signal rate of {scheduled}: it is for schedules where that is 1",
        ),
        (
            issubclass(kind, samplers.SimpleDDPMSampler) and exploding,
            f"{name} adds no noise where the signal rate is 1, as in {scheduled}: EulerAncestralSampler does",
        ),
        (
            issubclass(kind, samplers.DDPMSampler) and not isinstance(schedule, schedulers.DiscreteNoiseScheduler),
            f"{name} takes a discrete schedule, which has a posterior, not {scheduled}",
        ),
        (
            issubclass(kind, samplers.RK4Sampler) and type(schedule) is not schedulers.KarrasVENoiseScheduler,
            f"{name} takes KarrasVENoiseScheduler, whose steps follow from noise levels, not {scheduled}",
        ),
        (
            issubclass(kind, samplers.DDIMSampler) and options.get("eta", 0) > 0,
            "DDIMSampler fails with eta > 0: see EulerAncestralSampler or SimpleDDPMSampler",
        ),
        (
            bool(options.get("guidance_scale")) or options.get("autoencoder") is not None,
            "guidance belongs to denoise (jax_edm2.denoiser), and latents are decoded after sampling (make_decoder)",
        ),
    ):
        if wrong:
            raise ValueError(why)
