"""What diffusion networks predict, to and from the denoised image D(x; sigma): D = c_skip(sigma) x + c_out(sigma) P.

    denoised = V.denoised(network(...), x, sigma)
    score = SCORE.of(denoise(x, sigma), x, sigma)

x is x0 + sigma epsilon. Of an x = alpha x0 + sigma_t epsilon, as variance-preserving networks have it, take x / alpha
and sigma_t / alpha: their prediction of x0, epsilon or v is the same; a score is to be multiplied by alpha.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jax_edm2.ops import over
from jax_edm2.shapes import Images, Sigma

Scale = Callable[[Any], Any]


class Prediction(NamedTuple):
    """One of them, as the scales of D = c_skip x + c_out P (Eq. 7 of arXiv 2206.00364), functions of sigma."""

    c_skip: Scale
    c_out: Scale

    def denoised(self, prediction: Images, x: Images, sigma: Sigma | float) -> Images:
        """D of a prediction: [N, C, H, W], as both. sigma > 0: a noise level, or [N] of them."""
        sigma = over(x, sigma)
        return self.c_skip(sigma) * x + self.c_out(sigma) * prediction

    def of(self, denoised: Images, x: Images, sigma: Sigma | float) -> Images:
        """The prediction of D: the inverse of `denoised`, with the same shapes.

        Where c_out is small, at low noise, what is left of the difference of D and x has fewer digits than either.
        """
        sigma = over(x, sigma)
        return (denoised - self.c_skip(sigma) * x) / self.c_out(sigma)


def karras(sigma_data: float = 0.5) -> Prediction:
    """The raw output F of EDM and EDM2 networks (Table 1 of arXiv 2206.00364). sigma_data: of the network."""
    return Prediction(
        lambda sigma: sigma_data**2 / (sigma**2 + sigma_data**2),
        lambda sigma: sigma * sigma_data / jnp.sqrt(sigma**2 + sigma_data**2),
    )


X0 = Prediction(jnp.zeros_like, jnp.ones_like)  # D itself
EPSILON = Prediction(jnp.ones_like, lambda sigma: -sigma)  # the noise (x - D) / sigma: Eq. 11 of arXiv 2006.11239
# Of ln p(x; sigma), (D - x) / sigma^2: Eq. 3 of arXiv 2206.00364
SCORE = Prediction(jnp.ones_like, lambda sigma: sigma**2)
# alpha epsilon - sigma_t x0 with alpha^2 + sigma_t^2 = 1: Appendix D of arXiv 2202.00512
V = Prediction(lambda sigma: 1 / (1 + sigma**2), lambda sigma: -sigma / jnp.sqrt(1 + sigma**2))
