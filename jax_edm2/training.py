"""What training an EDM2 network in JAX needs beside an optimiser. Equation numbers refer to arXiv 2312.02696."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.network import Precond
from jax_edm2.ops import normalize


@jax.jit
def project_to_sphere(variables: Any) -> Any:
    """The same tree with every MPConv weight normalised over all axes but the first, gains and constants as they are.

    Forced weight normalisation (Eq. 66): apply it after every optimiser step.
    """

    def project(path, value):
        return normalize(value) if path and getattr(path[-1], "key", None) == "mpconv_weight" else value

    return jax.tree_util.tree_map_with_path(project, variables)


def denoising_loss(
    net: Precond,
    variables: Any,
    images: jax.Array,
    sigma: jax.Array,
    noise: jax.Array,
    class_labels: jax.Array | None = None,
    **apply_kwargs: Any,
) -> jax.Array:
    """The EDM2 loss, weighted by learned uncertainty (Eqs. 14, 15, 21), elementwise [N, C, H, W].

    images [N, C, H, W] with standard deviation sigma_data; sigma [N], noise standard deviations, > 0, drawn as
    ln(sigma) ~ N(P_mean, P_std) in training; noise [N, C, H, W] of unit variance; class_labels [N, label_dim] or None.
    apply_kwargs: for `net.apply`: train=True, rngs={"dropout": key}.
    """
    sigma, sigma_data = sigma.reshape(-1, 1, 1, 1), net.config.sigma_data
    noisy = images + sigma * noise
    outputs: Any = net.apply(variables, noisy, sigma, class_labels, return_logvar=True, **apply_kwargs)
    denoised, logvar = outputs
    weight = (jnp.square(sigma) + sigma_data**2) / jnp.square(sigma * sigma_data)
    return weight / jnp.exp(logvar) * jnp.square(denoised - images) + logvar


def power_function_exponent(std: float) -> float:
    """Exponent gamma of the power-function EMA profile whose relative standard deviation is `std` (Eq. 126)."""
    t = float(std) ** -2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def update_average(average: Any, variables: Any, *, images_seen: int, batch_size: int, std: float) -> Any:
    """Power-function EMA of `variables`, a tree like `average`, after the step ending at images_seen (Eq. 127)."""
    keep = (1 - batch_size / images_seen) ** (power_function_exponent(std) + 1)
    return jax.tree_util.tree_map(lambda old, new: old + (new - old) * (1 - keep), average, variables)


def posthoc_coefficients(stored: Sequence[tuple[float, float]], wanted: Sequence[tuple[float, float]]) -> np.ndarray:
    """How much of each stored average makes each wanted one: float64 [stored, wanted] (Appendix C of the paper).

    stored, wanted: of every average, how many images (in any unit) training had seen, and its relative standard
    deviation. The least-squares fit of the wanted profiles by the stored ones, whose columns are scaled to sum to 1,
    as NVlabs' code does.
    """
    gram = [[_inner_product(a, b) for b in stored] for a in stored]
    sides = [[_inner_product(a, b) for b in wanted] for a in stored]
    solution = np.linalg.solve(np.array(gram), np.array(sides))
    return solution / solution.sum(axis=0)


def _inner_product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The integral of the product of two power-function profiles, each of unit area."""
    (time_a, std_a), (time_b, std_b) = a, b
    gamma_a, gamma_b = power_function_exponent(std_a), power_function_exponent(std_b)
    power = gamma_b if time_a < time_b else -gamma_a
    ratio = (time_a / time_b) ** power
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * max(time_a, time_b))
