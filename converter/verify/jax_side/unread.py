"""A network's variables whose weights stay in their file: each is read when it is asked for, and held by nobody."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ...names import jax_path
from ...weights import Weights


class Unread:
    """A weight in a snapshot's file. As an array it is float32, which every stored dtype fits."""

    def __init__(self, snapshot: Weights, name: str):
        self._snapshot, self._name = snapshot, name
        self.shape: tuple[int, ...] = snapshot.tensors[name].shape
        self.dtype = jnp.dtype(snapshot.tensors[name].dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.stored().astype(np.float32).astype(dtype or np.float32, copy=False)

    def stored(self) -> np.ndarray:
        return self._snapshot.read(self._name)


def unread(snapshot: Weights) -> dict:
    """The variables of `converter.convert.in_memory`, but for the weights. Gains and Fourier features are few."""

    def leaf(name: str, shape: tuple[int, ...]):
        return Unread(snapshot, name) if len(shape) > 1 else jnp.asarray(snapshot.read(name), jnp.float32)

    leaves = {jax_path(name): leaf(name, record.shape) for name, record in snapshot.tensors.items()}
    return unflatten_dict(leaves, sep="/")


def raised(variables: Any) -> Any:
    """All of them in float32, on the default device."""
    return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)


def stored(variables: Any) -> Any:
    """All of them as they are stored: for a network as a whole, which raises them itself, one by one."""
    return jax.tree_util.tree_map(lambda x: jnp.asarray(x.stored()) if isinstance(x, Unread) else x, variables)


def shapes(variables: Any, dtype: Any = None) -> Any:
    """What `stored` would give, or with a dtype `raised`, as far as compiling takes it."""
    return jax.tree_util.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), variables)
