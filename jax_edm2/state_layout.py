"""The tree of a training state: a folder for each part, which has what a network's tree has. Imports no jax."""

from collections.abc import Mapping

from jax_edm2.config import differences, expected_tree
from jax_edm2.record import Record

NET = "net"  # the network's variables
MOMENTS = ("mu", "nu")  # Adam's first and second moments of its parameters


def average_part(std: float) -> str:
    """What an average of the network's variables is called: ema-0.050."""
    return f"ema-{std:.3f}"


def networks(record: Record) -> tuple[str, ...]:
    """The parts that are networks, of the training state that a record is of; none of anything else."""
    return (NET, *map(average_part, record.training.stds)) if record.training else ()


def expected_state(record: Record) -> dict[str, tuple[int, ...]]:
    """Shapes of all leaves of the training state that a record is of, by `/`-joined path."""
    tree = expected_tree(record.config)
    params = {path: shape for path, shape in tree.items() if path.startswith("params/")}
    parts = dict.fromkeys(networks(record), tree) | dict.fromkeys(MOMENTS, params)
    return {f"{part}/{path}": shape for part, leaves in parts.items() for path, shape in leaves.items()}


def check_state(record: Record, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What in `shapes` differs from the training state that a record is of, a phrase each."""
    return differences(expected_state(record), shapes)
