"""The loss of EDM2, and the normalisation that training forces on weights. Equations are those of arXiv 2312.02696."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_edm2.inputs import check_trainable
from jax_edm2.network import Precond
from jax_edm2.ops import normalize
from jax_edm2.shapes import Images, Labels, Sigma


def draw_noise_levels(key: jax.Array, count: int, P_mean: float, P_std: float) -> Sigma:
    """Noise levels of training, float32 [count]: ln(sigma) ~ N(P_mean, P_std)."""
    return sigma_of(jax.random.normal(key, (count,), jnp.float32), P_mean, P_std)


def sigma_of(levels: jax.Array, P_mean: float, P_std: float) -> Sigma:
    """Noise levels [N] of standard normal numbers [N]."""
    return jnp.exp(P_mean + P_std * levels)


@jax.jit
def project_to_sphere(variables: Any) -> Any:
    """The same tree with every MPConv weight normalised over all axes but the first, gains and constants as they are.

    Forced weight normalisation (Eq. 66): what every training step begins with, the first one too. The gradient is taken
    there, the optimiser changes the normalised weights, and `update_average` takes what it leaves, unnormalised.
    """

    def project(path, value):
        return normalize(value) if path and getattr(path[-1], "key", None) == "mpconv_weight" else value

    return jax.tree_util.tree_map_with_path(project, variables)


def denoising_loss(
    net: Precond,
    variables: Any,
    images: Images,
    sigma: Sigma,
    noise: Images,
    class_labels: Labels | None = None,
    **apply_kwargs: Any,
) -> Images:
    """The EDM2 loss, weighted by learned uncertainty (Eqs. 14, 15, 21), elementwise: float32 [N, C, H, W].

    images [N, C, H, W] with standard deviation sigma_data; sigma [N], noise standard deviations, > 0, drawn as
    ln(sigma) ~ N(P_mean, P_std) in training; noise [N, C, H, W] of unit variance; class_labels [N, label_dim] or None.
    apply_kwargs: for `net.apply`: train=True, rngs={"dropout": key}.

    A training step, in NVlabs' order: `project_to_sphere`, the gradient of this, summed and divided by the batch size,
    the optimiser, and `update_average` of the weights as they are then: `train_step` does.
    Raises: ValueError for parameters in float16, in which training becomes NaN, and as `Precond` does.
    """
    check_trainable(variables["params"])
    sigma, sigma_data = sigma.reshape(-1, 1, 1, 1), net.config.sigma_data
    noisy = images + sigma * noise
    outputs: Any = net.apply(variables, noisy, sigma, class_labels, return_logvar=True, **apply_kwargs)
    denoised, logvar = outputs
    weight = (jnp.square(sigma) + sigma_data**2) / jnp.square(sigma * sigma_data)
    return weight / jnp.exp(logvar) * jnp.square(denoised - images) + logvar
