"""Where a training stands, complete: a network's variables, Adam's moments, averages, and how far it has come.

On disk it is an orbax folder, or a safetensors file, whose tree is that of `jax_edm2.state_layout`.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_edm2.checkpoint import opened
from jax_edm2.dtypes import not_finite
from jax_edm2.messages import listing
from jax_edm2.orbax_checkpoint import write_orbax
from jax_edm2.placement import placement
from jax_edm2.record import Record
from jax_edm2.safetensors_checkpoint import write_safetensors
from jax_edm2.state_layout import MOMENTS, NET, average_part, check_state
from jax_edm2.tensors import CheckpointError, Digest, Tensor, check_digest


@dataclass(frozen=True)
class TrainingState:
    """All arrays are float32.

    variables: of the network, as `load` gives them. mu, nu: Adam's first and second moments, trees like
    variables["params"]. averages: by their relative standard deviation, trees like variables. record: its `training`
    has images, steps (what optax calls `count`), and Adam's settings.
    """

    variables: Any
    mu: Any
    nu: Any
    averages: Mapping[float, Any]
    record: Record


def load_training_state(path: str | os.PathLike, *, sharding: Any = None, check: bool = True) -> TrainingState:
    """The training state that `edm2-convert` or `save_training_state` wrote.

    sharding: as for `load`; a tree has the state's parts above the network's: {"net": ..., "mu": ..., ...}.
    Raises: CheckpointError if it is missing, broken, altered or no training state; ValueError as `load`.
    """
    with opened(path) as stored:
        record = stored.record
        if record.training is None:
            raise CheckpointError(f"{path}: is a network's checkpoint, not a training state: jax_edm2.load reads it")
        if check:
            check_digest(path, record)
        if problems := check_state(record, stored.shapes):
            raise CheckpointError(f"{path}: does not hold the training state of its record: " + listing(problems))
        where = placement(sharding, stored.shapes)
        digest = Digest() if check and not stored.in_parts(where) else None
        tree = unflatten_dict(stored.variables(None, where, digest), sep="/")
        if digest is not None:
            digest.check(path, record)
    averages = {std: tree[average_part(std)] for std in record.training.stds}
    mu, nu = (tree[part]["params"] for part in MOMENTS)
    return TrainingState(tree[NET], mu, nu, averages, record)


def save_training_state(path: str | os.PathLike, state: TrainingState, *, overwrite: bool = False) -> Record:
    """Write a training state: a safetensors file if `path` ends in .safetensors, else an orbax folder.

    Returns what was written: its record with the digest and the count of values that are not finite.
    Raises: CheckpointError if it does not hold what its record says, or something would be lost; FileExistsError unless
    `overwrite`; OSError.
    """
    record = state.record
    if record.training is None:
        raise CheckpointError(f"{path}: the record of this training state has no training")
    averages = {average_part(std): tree for std, tree in state.averages.items()}
    tree = {NET: state.variables, "mu": {"params": state.mu}, "nu": {"params": state.nu}, **averages}
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flatten_dict(tree, sep="/").items()}
    if odd := [name for name, array in arrays.items() if array.dtype != np.float32]:
        raise CheckpointError(f"{path}: training states are in float32, and {odd[0]} is {arrays[odd[0]].dtype}")
    if problems := check_state(record, {name: array.shape for name, array in arrays.items()}):
        raise CheckpointError(f"{path}: this is not the training state of its record: " + listing(problems))
    tensors = {
        name: Tensor("float32", array.shape, lambda array=array: [array.tobytes()])  # type: ignore[misc]
        for name, array in arrays.items()
    }
    record = dataclasses.replace(record, not_finite=sum(map(not_finite, arrays.values())))
    write = write_safetensors if str(path).endswith(".safetensors") else write_orbax
    return write(path, tensors, record, overwrite=overwrite)
