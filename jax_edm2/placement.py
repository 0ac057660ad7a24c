"""Which devices the variables of a network go to: `sharding=` of `load`."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

Where = Sharding | jax.Device | None
Placement = dict[str, Sharding | None]  # by path; None is JAX's default device, uncommitted


def placement(sharding: Any, paths: Iterable[str]) -> Placement:
    """The sharding of every path, of one for all or of a tree whose leaves are for all that is below them.

    sharding: a Sharding, a Device or None, or mappings of mappings of these, by the parts of the paths.
    Raises: ValueError if a path has none, a name is no part of any path, or something else is where one should be.
    """
    paths = list(paths)
    found = {path: _at(sharding, path) for path in paths}
    _refuse_unknown(sharding, "", paths)
    return found


def placed(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """An array that all processes have, on devices."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # jax.device_put would send it to all processes, to compare.
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _at(sharding: Any, path: str) -> Sharding | None:
    where = sharding
    done: list[str] = []
    for name in path.split("/"):
        if not isinstance(where, Mapping):
            break
        if name not in where:
            raise ValueError(f"sharding: has nothing for {path} (no {'/'.join([*done, name])})")
        where = where[name]
        done.append(name)
    if isinstance(where, jax.Device):
        return SingleDeviceSharding(where)
    if where is None or isinstance(where, Sharding):
        return where
    name = f"{'/'.join(done)} is " if done else "is "
    kind = "a tree" if isinstance(where, Mapping) else f"a {type(where).__name__}"
    raise ValueError(f"sharding: {name}{kind}; it should be a jax.sharding.Sharding, a jax.Device or None")


def _refuse_unknown(where: Any, above: str, paths: list[str]):
    """A name that is misspelt would place nothing."""
    if not isinstance(where, Mapping):
        return
    for name, below in where.items():
        here = f"{above}{name}"
        if not any(path == here or path.startswith(f"{here}/") for path in paths):
            raise ValueError(f"sharding: {here} is not part of the network")
        _refuse_unknown(below, f"{here}/", paths)
