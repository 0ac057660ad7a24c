"""Where a training's arrays are: images are split over devices, and of the state each device has all or a part.

mesh = data_mesh(); state = jax.device_put(state, fully_sharded(state, mesh))
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
LEAST = 2**14  # values: of what is smaller, every device has all


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices, of all processes, in one row; their axis is called "data"."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings: every device has all of every leaf."""
    return jax.tree_util.tree_map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def fully_sharded(tree: Any, mesh: Mesh, least: int = LEAST) -> Any:
    """A tree of shardings (FSDP): a leaf of `least` values or more is split along its longest axis that divides."""
    count = mesh.size

    def sharding(leaf: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % count == 0]
        if leaf.size < least or not axes:
            return NamedSharding(mesh, PartitionSpec())
        axis = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    return jax.tree_util.tree_map(sharding, tree)


def split(mesh: Mesh) -> NamedSharding:
    """By the first axis: of a batch, every device has a part."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def on_mesh(batch: Any, mesh: Mesh) -> Any:
    """A batch of arrays, of which each process gives its part, split over the mesh."""
    where = split(mesh)
    return jax.tree_util.tree_map(lambda part: jax.make_array_from_process_local_data(where, part), batch)


def on_host(tree: Any) -> Any:
    """Copies of whole arrays, as numpy's, in every process: all processes have to call this at the same point."""

    def whole(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable:
            return np.array(leaf)
        if leaf.is_fully_replicated:
            return np.array(leaf.addressable_data(0))
        return np.array(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree_util.tree_map(whole, tree)
