"""The loss by noise level, added up on the devices while training goes on."""

import math

import jax
import jax.numpy as jnp
import numpy as np

LOWEST, HIGHEST, BINS = -8.0, 8.0, 64  # of ln(sigma)


def no_tally() -> np.ndarray:
    """Sums of losses, and counts of images, by ln(sigma): float32 [2, BINS]."""
    return np.zeros((2, BINS), np.float32)


def tallied(tally: jax.Array, sigma: jax.Array, losses: jax.Array) -> jax.Array:
    """A tally with a step's images added; sigma, losses [N]."""
    place = (jnp.log(sigma) - LOWEST) * (BINS / (HIGHEST - LOWEST))
    place = jnp.clip(place.astype(jnp.int32), 0, BINS - 1)
    return tally + jnp.stack([jnp.zeros(BINS).at[place].add(values) for values in (losses, jnp.ones_like(losses))])


def mean_loss(tally: np.ndarray) -> float:
    """Of all images in a tally; NaN of none."""
    images = float(tally[1].sum())
    return float(tally[0].sum()) / images if images else math.nan
