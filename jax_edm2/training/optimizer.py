"""NVlabs' optimiser as an optax chain, and its parts, for chains of one's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_edm2.ops import normalize
from jax_edm2.training.recipe import Recipe


def make_optimizer(recipe: Recipe, *, keep_on_the_sphere: bool = False) -> optax.GradientTransformationExtraArgs:
    """NVlabs': gradients that are not finite become 0, then Adam, then the learning rate of the images seen so far.

    `update(gradient, state, params, images=seen)`: images, a float32 or a number, before the step.
    keep_on_the_sphere: the forced weight normalisation (Eq. 66) comes last, and parameters are always normalised.
    `train_step` wants it not: NVlabs' averages are of the raw weights, and each step begins with `project_to_sphere`.
    """
    last = (on_the_sphere(),) if keep_on_the_sphere else ()
    return optax.chain(
        zero_where_not_finite(),
        optax.scale_by_adam(*recipe.betas, eps=recipe.eps),
        follow(recipe.rate),
        *last,
    )


def zero_where_not_finite() -> optax.GradientTransformation:
    """Values of a gradient that are NaN or infinite become 0, each by itself."""

    def update(updates, state, params=None):
        del params
        return jax.tree_util.tree_map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def follow(rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Minus the learning rate times the update; the rate is a function of the images seen before the step."""

    def update(updates, state, params=None, *, images, **others):
        del params, others
        step = -rate(jnp.asarray(images, jnp.float32))
        return jax.tree_util.tree_map(lambda u: u * step.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def on_the_sphere() -> optax.GradientTransformation:
    """What brings parameters to where `project_to_sphere` would put them after the update. Needs the parameters."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("the forced weight normalisation needs the parameters: optimizer.update(g, state, params)")

        def projected(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            if getattr(path[-1] if path else None, "key", None) != "mpconv_weight":
                return u
            return normalize(p + u) - p

        return jax.tree_util.tree_map_with_path(projected, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
