"""Networks to sample with: converted checkpoints and snapshots alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.convert import in_memory, record_of
from converter.snapshot import read_snapshot
from jax_edm2.record import Record

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
