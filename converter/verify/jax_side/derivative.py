"""The derivative of a denoiser by the noise: see `torch_side.derivative`, of which this is the JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def derivative(denoise: Callable[..., Any], sigma_data: float, images, sigma, noise, labels) -> jax.Array:
    """The gradient [N, C, H, W] by the noise [N, C, H, W] of mean(lambda(sigma) |D - images|^2).

    denoise(x, sigma, labels) gives D. images [N, C, H, W], sigma [N], labels [N, label_dim] or None.
    """
    level = sigma[:, None, None, None]  # [N, 1, 1, 1]
    weight = (jnp.square(level) + sigma_data**2) / jnp.square(level * sigma_data)

    def loss(noise):
        return jnp.mean(weight * jnp.square(denoise(images + level * noise, sigma, labels) - images))

    return jax.grad(loss)(noise)
