"""A denoiser's probability flow and its stochastic variants for diffrax (docs.kidger.site/diffrax), and what they give.

Adaptive solvers and dense output:

    term = jax_edm2.diffrax.probability_flow(denoise)
    solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 80.0, 0.002, None, 80.0 * noise, stepsize_controller=...)

and pictures into noise and back (`encode`, `decode`), and how likely pictures are (`log_likelihood`). Time is the noise
level sigma, along which paths are nearly straight (arXiv 2206.00364, Section 3). denoise(x, sigma) -> D is what
`jax_edm2.denoiser` makes of a network and labels, guided or not.
"""

import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jax import lax

from jax_edm2.method import Denoise
from jax_edm2.settings import Settings
from jax_edm2.shapes import Floats, Images

LEVELS = Settings.sigma_min, Settings.sigma_max  # what EDM2 samples between


def probability_flow(denoise: Denoise) -> diffrax.ODETerm:
    """dx/dsigma = (x - D(x; sigma)) / sigma (Eq. 3 of arXiv 2206.00364), for x [N, C, H, W], in either direction."""
    return diffrax.ODETerm(lambda sigma, x, _: (x - denoise(x, sigma)) / sigma)


def reverse_sde(denoise: Denoise, path: diffrax.AbstractBrownianPath, churn: float = 1.0) -> diffrax.MultiTerm:
    """The probability flow with noise put in and taken out (Eq. 6 of arXiv 2206.00364, beta(sigma) = churn / sigma).

    dx = (1 + churn) (x - D) / sigma dsigma + sqrt(2 churn sigma) dw, from a high sigma to a low one. churn 1 is the
    reverse-time SDE of arXiv 2011.13456, and 0 is `probability_flow`. path: for x [N, C, H, W], over the noise levels:
    diffrax.VirtualBrownianTree(0.002, 80.0, tol=1e-3, shape=jax.ShapeDtypeStruct(x.shape, x.dtype), key=key).
    """

    def drift(sigma, x, _):
        return (1 + churn) * (x - denoise(x, sigma)) / sigma

    def diffusion(sigma, x, _):
        return lineax.IdentityLinearOperator(jax.eval_shape(lambda: x)) * jnp.sqrt(2 * churn * sigma)

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))


def encode(
    denoise: Denoise, images: Images, *, levels: tuple[float, float] = LEVELS, rtol: float = 1e-6, **how: Any
) -> Images:
    """The noise [N, C, H, W], of about unit variance, that the probability flow makes of images [N, C, H, W].

    levels: the lowest noise level, which images are taken to have, and the highest. rtol: error allowed in a step, of
    the values' size. how: for `diffrax.diffeqsolve`: another solver=, max_steps=, adjoint=.
    """
    low, high = levels
    return _solved(probability_flow(denoise), images, low, high, rtol, how) / high


def decode(
    denoise: Denoise, noise: Images, *, levels: tuple[float, float] = LEVELS, rtol: float = 1e-6, **how: Any
) -> Images:
    """The images [N, C, H, W] that the probability flow makes of unit noise [N, C, H, W]: what `encode` undoes."""
    low, high = levels
    return _solved(probability_flow(denoise), high * noise, high, low, rtol, how)


def log_likelihood(
    denoise: Denoise,
    images: Images,
    key: jax.Array | None = None,
    *,
    probes: int = 1,
    levels: tuple[float, float] = LEVELS,
    rtol: float = 1e-6,
    **how: Any,
) -> tuple[Floats, Images]:
    """(ln p [N], noise [N, C, H, W]): the density of images [N, C, H, W], in nats, and what `encode` makes of them.

    The density of values as they are, from -1 to 1 say, at the lowest noise level, by the change of variables along
    the probability flow (Eq. 39 of arXiv 2011.13456), with N(0, sigma_max^2) at the highest: `bits_per_dim`.
    key: None takes the exact trace of the derivative, C H W products with it: for small images. With a key it is
    Hutchinson's estimate from so many probes of +-1 (arXiv 1810.01367, Section 3.1), the same at all noise levels:
    unbiased. levels, rtol, how: as for `encode`.
    """
    low, high = levels
    size = math.prod(images.shape[1:])
    if key is None:
        directions = jnp.eye(size, dtype=images.dtype).reshape(size, 1, *images.shape[1:])
    else:
        directions = jax.random.rademacher(key, (probes, *images.shape), images.dtype)

    def flow(sigma, state, _):
        x, _ln_p = state
        denoised, derivative = jax.linearize(lambda x: denoise(x, sigma), x)

        def along(direction):
            direction = jnp.broadcast_to(direction, x.shape)
            return jnp.sum(direction * derivative(direction), axis=(1, 2, 3))

        trace = lax.map(along, directions, batch_size=64).sum(0) / (1 if key is None else probes)
        return (x - denoised) / sigma, (size - trace) / sigma

    start = images, jnp.zeros(len(images), images.dtype)
    x, grown = _solved(diffrax.ODETerm(flow), start, low, high, rtol, how)
    noise = x / high
    prior = -jnp.square(noise).sum((1, 2, 3)) / 2 - size * math.log(2 * math.pi * high**2) / 2
    return prior + grown, noise


def bits_per_dim(log_likelihood: Floats, images: Images, levels: int = 256) -> Floats:
    """-ln p in bits for each value of images [N, C, H, W] that has so many levels from -1 to 1: [N].

    Of `levels` values, each takes 2 / (levels - 1) of the density.
    """
    size = math.prod(images.shape[1:])
    return -log_likelihood / (size * math.log(2)) + math.log2((levels - 1) / 2)


def _solved(term: Any, state: Any, start: float, end: float, rtol: float, how: dict[str, Any]) -> Any:
    how = {"solver": diffrax.Tsit5(), "max_steps": 100_000, **how}
    controller = diffrax.PIDController(rtol=rtol, atol=rtol)
    solution = diffrax.diffeqsolve(term, t0=start, t1=end, dt0=None, y0=state, stepsize_controller=controller, **how)
    return jax.tree.map(lambda ys: ys[-1], solution.ys)
