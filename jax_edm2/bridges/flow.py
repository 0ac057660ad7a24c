"""Flow matching (arXiv 2210.02747, 2209.03003) from a denoiser, and back, as Flax's guide and jax-flow have it.

A path leads from noise x0 at t = 0 to data x1 at t = 1: x_t = (1 - t) x0 + t x1, with velocity x1 - x0. It is a path of
the denoiser's, scaled: x_t / t has the noise level sigma = (1 - t) / t.

    v = jax_edm2.flow.velocity(jax_edm2.denoiser(net, variables, labels))
    for i in range(100):
        x = x + v(x, i / 100) / 100
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_edm2.method import Denoise
from jax_edm2.ops import over
from jax_edm2.settings import Settings
from jax_edm2.shapes import Floats, Images

Velocity = Callable[[jax.Array, Any], jax.Array]
LEVELS = Settings.sigma_min, Settings.sigma_max  # what EDM2 samples between


def interpolate(noise: Images, images: Images, t: Floats | float) -> tuple[Images, Images]:
    """(x_t, velocity) between noise and images, [N, C, H, W] each: an input of training, and its target.

    noise: of unit variance. t: from 0, noise, to 1, images; one for all, or [N].
    """
    t = over(images, t)
    return (1 - t) * noise + t * images, images - noise


def velocity(denoise: Denoise, known: tuple[float, float] = LEVELS) -> Velocity:
    """v(x, t) [N, C, H, W] of a denoiser: the mean of x1 - x0 given x_t = x [N, C, H, W]; t from 0 to 1, one or [N].

    denoise: D(x; sigma), as `jax_edm2.denoiser` makes it, guided or not; asked for one noise level where t is one, and
    for [N] else. v = (D(x / t; (1 - t) / t) - x) / (1 - t), written so that no end divides by 0.
    known: the lowest and highest noise level that it is asked for. Above, near t = 0, D is what it is at the highest,
    of the same noise: at t = 0, v = D(sigma_max x; sigma_max) - x. Below, near t = 1, the score is what it is at the
    lowest: at t = 1, where no noise is left, v = x.
    """
    lowest, highest = known

    def v(x, t):
        t = jnp.asarray(t, x.dtype)
        sigma = jnp.clip((1 - t) / jnp.maximum(t, 1 / (2 + 2 * highest)), lowest, highest)
        at, t = over(x, sigma), over(x, t)
        early = t <= 1 / 2
        scale = jnp.where(early, 1 - t, t)  # whose derivative a maximum would halve at 1 / 2
        noisy = x * jnp.where(early, at, 1) / scale  # x / t, but where sigma is above what is known
        denoised = denoise(noisy, sigma)
        noise = (noisy - denoised) / at * jnp.minimum(1, (1 - t) / scale / at)
        return jnp.where(early, denoised - x, x - noise) / scale

    return v


def denoiser(velocity: Velocity) -> Denoise:
    """D(x; sigma) [N, C, H, W] of a flow-matching network's velocity: what `jax_edm2.heun` and the others sample from.

    D(x; sigma) = t x + (1 - t) v(t x, t) at t = 1 / (1 + sigma). sigma: a noise level, or [N].
    """

    def denoise(x, sigma):
        t = 1 / (1 + jnp.asarray(sigma, x.dtype))
        column = over(x, t)
        return column * x + (1 - column) * velocity(column * x, t)

    return denoise
