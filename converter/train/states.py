"""What a training begins or goes on with: arrays of a file, of another network, or new ones, on their devices."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from jax_edm2.checkpoint import read_record
from jax_edm2.network import Precond
from jax_edm2.record import Record
from jax_edm2.state_layout import MOMENTS, NET, average_part, expected_state
from jax_edm2.training import Recipe, State, begin, resume
from jax_edm2.training_state import TrainingState, load_training_state

from ..convert import describe
from ..opening import is_checkpoint, open_weights
from ..training_state import TrainingState as TrainingStateFile
from .request import TrainError

Place = Callable[[Any], Any]  # a tree of shardings, for a tree of what has a shape


@contextlib.contextmanager
def _opened(path: Path, config_from: str | None) -> Iterator[TrainingStateFile]:
    with open_weights(path, config_from=config_from) as state:
        if not isinstance(state, TrainingStateFile):
            raise TrainError(f"{path}: is one network and no training state; --init begins a training with it")
        yield state


def record_of_training(path: Path, config_from: str | None = None) -> Record:
    """The record of a training state of NVlabs' or our own, whose arrays are not read. Raises: as `read_training`."""
    if is_checkpoint(path):
        return read_record(path)
    with _opened(path, config_from) as state:
        return describe(state)


def read_training(path: Path, place: Place, config_from: str | None = None) -> TrainingState:
    """A training state of NVlabs' or our own; of ours, arrays go straight to where they belong.

    Raises: ConverterError, CheckpointError, OSError.
    """
    if is_checkpoint(path):
        shapes = expected_state(read_record(path)).items()
        tree = unflatten_dict({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes}, sep="/")
        return load_training_state(path, sharding=place(tree))
    with _opened(path, config_from) as state:
        tree = unflatten_dict({name: state.read(name) for name in state.tensors}, sep="/")
        record, training = describe(state), state.training
    averages = {std: tree[average_part(std)] for std in training.stds}
    mu, nu = (tree[part]["params"] for part in MOMENTS)
    return TrainingState(tree[NET], mu, nu, averages, record)


def begun(variables: Any, optimizer: optax.GradientTransformation, recipe: Recipe, place: Place) -> tuple[State, Any]:
    """The state before the first step, and its shardings: as it is made, no device has more of it than it shall."""

    def first(variables):
        return begin(variables, optimizer, recipe)

    shardings = place(jax.eval_shape(first, variables))
    return jax.jit(first, out_shardings=shardings)(variables), shardings


def resumed(
    stored: TrainingState, path: Path | None, optimizer: optax.GradientTransformation, recipe: Recipe, place: Place
) -> tuple[State, Any]:
    """The state that is gone on with, and its shardings. path: its file. Raises: TrainError for other averages."""
    if sorted(stored.averages) != sorted(recipe.stds):
        have = ",".join(f"{std:g}" for std in stored.averages)
        raise TrainError(f"{path}: has averages of std {have}: --stds {have}")
    state = resume(stored, optimizer)
    shardings = place(state)
    return jax.device_put(state, shardings), shardings


def initial_variables(net: Precond, seed: int) -> Any:
    """Variables of a new network, from a key of its own."""
    config = net.config
    shape = 1, config.img_channels, config.img_resolution, config.img_resolution
    labels = np.zeros((1, config.label_dim), np.float32) if config.label_dim else None
    params, constants = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))
    start = jax.jit(lambda keys: net.init(keys, jnp.zeros(shape), jnp.ones(1), labels))
    variables = start({"params": params, "constants": constants})
    return {name: dict(tree) for name, tree in variables.items()}
