"""Networks to sample with: converted checkpoints and snapshots alike."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.dtypes import not_finite
from jax_edm2.record import Record, tensors_digest
from jax_edm2.remote import is_remote
from jax_edm2.tensors import stored_dtype

from .convert import checkpoint_tensors, describe
from .errors import ConverterError
from .names import jax_path
from .opening import is_checkpoint
from .snapshot import read_snapshot
from .weights import Weights

if TYPE_CHECKING:
    from jax_edm2.network import Precond


class NotFiniteError(ConverterError):
    """A network with NaN or infinite weights, with which nothing can be computed."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, its variables as stored, and what its checkpoint says or would say of it."""

    name: str
    net: "Precond"
    variables: Any
    record: Record


def load_network(
    path: Path | str, name: str, compute_dtype: Callable[[Record], Any], dtype: Any = None, sharding: Any = None
) -> LoadedNetwork:
    """Load either kind of file, or a checkpoint in a store.

    compute_dtype: of the activations, for a record. dtype, sharding: as for `load`.
    Raises: ConverterError, CheckpointError, OSError.
    """
    import jax.numpy as jnp

    from jax_edm2.checkpoint import load, read_record
    from jax_edm2.network import Precond

    if is_remote(path) or is_checkpoint(Path(path)):
        record = read_record(path)
        net, variables = load(path, dtype=dtype, compute_dtype=jnp.dtype(compute_dtype(record)), sharding=sharding)
        return LoadedNetwork(name, net, variables, record)
    with read_snapshot(path) as snapshot:
        record = record_of(snapshot, name)
        net = Precond(snapshot.config, jnp.dtype(compute_dtype(record)))
        return LoadedNetwork(name, net, in_memory(snapshot, dtype, sharding), record)


def in_memory(snapshot: Weights, dtype: Any = "float32", sharding: Any = None) -> dict:
    """The variables that `load` would give of `snapshot`'s checkpoint; dtype None is as stored."""
    import jax
    from flax.traverse_util import unflatten_dict

    from jax_edm2.placement import placed, placement

    names = {jax_path(name): name for name in snapshot.tensors}
    where = placement(sharding, names)

    def put(path: str, name: str) -> jax.Array:
        array = snapshot.read(name)
        return placed(array if dtype is None else array.astype(dtype), where[path])

    return unflatten_dict({path: put(path, name) for path, name in names.items()}, sep="/")


def record_of(snapshot: Weights, name: str | None = None, not_finite: dict[str, int] | None = None) -> Record:
    """The record that `snapshot`'s checkpoint would have, with its digest, but for the hash of the snapshot's file.

    name: the file's name or URL, if its path is not what it is known by. not_finite: gets the tensors that have values
    that are NaN or infinite, and how many.
    """
    not_finite = {} if not_finite is None else not_finite
    tensors, lines = checkpoint_tensors(snapshot, not_finite=not_finite), {}
    for path, tensor in tensors.items():
        sha = hashlib.sha256()
        for chunk in tensor.chunks():
            sha.update(chunk)
        lines[path] = tensor.dtype, tensor.shape, sha.hexdigest()
    digest, count = tensors_digest(lines), sum(not_finite.values())
    record = describe(snapshot, name)
    return dataclasses.replace(record, dtype=stored_dtype(tensors), digest=digest, not_finite=count)


def refuse_not_finite(name: str, variables: Any):
    """name: of a network, for the user. Raises: NotFiniteError."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    counts = {path: not_finite(np.asarray(leaf)) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    if bad := [f"{path} ({count:,})" for path, count in counts.items() if count]:
        shown, more = ", ".join(bad[:5]), f" and {len(bad) - 5:,} more tensors" if len(bad) > 5 else ""
        raise NotFiniteError(f"{name}: has values that are NaN or infinite, in {shown}{more}; it computes nothing else")
