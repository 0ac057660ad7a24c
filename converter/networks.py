"""Networks to sample with: converted checkpoints and snapshots alike."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.record import Record, tensors_digest
from jax_edm2.tensors import stored_dtype

from .convert import checkpoint_tensors, describe
from .names import jax_path
from .snapshot import Snapshot, read_snapshot

if TYPE_CHECKING:
    from jax_edm2.network import Precond


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, its variables as stored, and what its checkpoint says or would say of it."""

    name: str
    net: "Precond"
    variables: Any
    record: Record


def is_checkpoint(path: Path) -> bool:
    """A safetensors file or an orbax folder, by its name; anything else is taken for a snapshot."""
    return path.is_dir() or path.suffix == ".safetensors"


def load_network(path: Path, name: str, compute_dtype: Callable[[Record], str]) -> LoadedNetwork:
    """Load either kind of file. compute_dtype: of the activations, for a record.

    Raises: ConverterError, CheckpointError, OSError.
    """
    import jax.numpy as jnp

    from jax_edm2.checkpoint import load, read_record
    from jax_edm2.network import Precond

    if is_checkpoint(path):
        record = read_record(path)
        net, variables = load(path, compute_dtype=jnp.dtype(compute_dtype(record)))
        return LoadedNetwork(name, net, variables, record)
    with read_snapshot(path) as snapshot:
        record = record_of(snapshot)
        net = Precond(snapshot.config, jnp.dtype(compute_dtype(record)))
        return LoadedNetwork(name, net, in_memory(snapshot, None), record)


def in_memory(snapshot: Snapshot, dtype: str | None = "float32") -> dict:
    """The variables that loading `snapshot`'s checkpoint would give, on the default device; None is as stored."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    leaves = {jax_path(name): snapshot.read(name) for name in snapshot.tensors}
    return unflatten_dict({path: jnp.asarray(value, dtype) for path, value in leaves.items()}, sep="/")


def record_of(snapshot: Snapshot) -> Record:
    """The record that `snapshot`'s checkpoint would have, with its digest, but for the hash of the snapshot's file."""
    tensors, lines = checkpoint_tensors(snapshot), {}
    for path, tensor in tensors.items():
        sha = hashlib.sha256()
        for chunk in tensor.chunks():
            sha.update(chunk)
        lines[path] = tensor.dtype, tensor.shape, sha.hexdigest()
    return dataclasses.replace(describe(snapshot), dtype=stored_dtype(tensors), digest=tensors_digest(lines))
