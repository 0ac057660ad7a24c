"""A training of a few steps in JAX, by the step that trainings take, from the state and batches of the truth."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jax_edm2.network import Precond
from jax_edm2.state_layout import MOMENTS, NET, average_part
from jax_edm2.training import Draws, Recipe, begin, make_optimizer, resume, train_step
from jax_edm2.training.step import adam_of
from jax_edm2.training_state import TrainingState

from ...names import torch_name
from ..cases import Plan, Training, make_batch
from ..shapes import TRAINING

Start = Callable[[], TrainingState]


def recipe_of(about: Training) -> Recipe:
    return Recipe(
        batch_size=about.BATCH,
        learning_rate=about.LEARNING_RATE,
        decay_batches=about.decay_batches,
        rampup_images=about.rampup_images,
        P_mean=about.P_MEAN,
        P_std=about.P_STD,
        betas=about.BETAS,
        eps=about.eps,
        loss_scaling=about.LOSS_SCALING,
        stds=about.stds,
    )


def run_training(
    net: Precond, variables: Any, start: Start | None, about: Training, plan: Plan
) -> Iterator[tuple[str, np.ndarray]]:
    """(key, value) of all that comes of a training. start: gives the whole state that it goes on with."""
    net = net.clone(config=dataclasses.replace(net.config, dropout=0.0))
    recipe = recipe_of(about)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and int32
        optimizer = make_optimizer(recipe)
        state = begin(variables, optimizer, recipe) if start is None else resume(start(), optimizer)
        shown: dict[str, list[float]] = {"rate": [], "loss": [], "gradient_norm": []}
        for step in range(plan.updates):
            batch = make_batch(net.config, plan.seeds[0], step)
            draws = Draws(jnp.asarray(batch.levels), jnp.asarray(batch.noise))
            images = jnp.asarray(batch.images)
            state, seen = train_step(net, optimizer, recipe, state, images, batch.labels, draws, parts=about.PARTS)
            for name, values in shown.items():
                values.append(float(seen[name]))
    for key, found in {"images": int(state.images), **shown}.items():  # first what the rest follows from
        yield f"{TRAINING}/{key}", np.asarray(found, np.float64)
    adam = adam_of(state)
    parts = {NET: state.variables["params"], **dict(zip(MOMENTS, (adam.mu, adam.nu), strict=True))}
    for part, tree in (parts | {average_part(std): tree["params"] for std, tree in state.averages.items()}).items():
        for path, value in flatten_dict(tree, sep="/").items():
            yield f"{TRAINING}/{part}/{torch_name(f'params/{path}')}", np.asarray(value)
