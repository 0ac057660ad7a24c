"""Any file with a network's weights, opened: a snapshot, a training state, or a checkpoint of either format."""

import dataclasses
import os
from pathlib import Path

from jax_edm2.checkpoint import read_record
from jax_edm2.record import Record
from jax_edm2.state_layout import average_part, networks

from . import presets
from .checkpoint_weights import CheckpointWeights, read_checkpoint
from .errors import SnapshotError, UsageError
from .names import torch_name
from .snapshot import open_file, read_snapshot
from .training_state import Known, TrainingState, chosen, read_training_state
from .weights import Weights

SAFETENSORS = ".safetensors"


def is_checkpoint(path: Path) -> bool:
    """A safetensors file or an orbax folder, by its name; anything else is of PyTorch."""
    return path.is_dir() or path.suffix == SAFETENSORS


def is_training_state(path: Path) -> bool:
    """A zip archive, as torch.save makes them, or what was made of one. Raises: ConverterError, CheckpointError."""
    if is_checkpoint(path):
        return read_record(path).training is not None
    descriptor = open_file(path)
    try:
        return os.pread(descriptor, 2, 0) == b"PK"
    finally:
        os.close(descriptor)


def open_weights(path: Path, part: str | None = None, config_from: str | None = None) -> Weights:
    """part: which network of a training state (net, ema-0.050, ...); None is all of it. config_from: another file or a
    published network's name, which has a training state's configuration.

    Raises: SnapshotError, CheckpointError, OSError; UsageError for a choice where there is none.
    """
    if is_checkpoint(path):
        checkpoint = read_checkpoint(path)
        if checkpoint.record.training is not None:
            _no_config(path, config_from)
            return checkpoint if part is None else _part(checkpoint, part)
        found: Weights = checkpoint
    elif is_training_state(path):
        state = read_training_state(path, None if config_from is None else known(config_from))
        return state if part is None else _part(state, part)
    else:
        found = read_snapshot(path)
    if part is not None:
        found.close()
        raise UsageError(f"{path}: holds one network; --weights chooses one of a training state's")
    _no_config(path, config_from)
    return found


def open_network(path: Path, part: str | None = None, config_from: str | None = None) -> Weights:
    """Likewise, but one network: of a training state, `part` has to say which. Raises: as `open_weights`."""
    found = open_weights(path, part, config_from)
    if names := parts(found):
        found.close()
        raise UsageError(f"{path}: is a training state: choose one of its networks with --weights {'|'.join(names)}")
    return found


def open_side(path: Path, part: str | None = None, config_from: str | None = None) -> Weights:
    """Likewise, where the choice is for whichever of several files is a training state."""
    if is_training_state(path):
        return open_network(path, part, None if is_checkpoint(path) else config_from)
    return open_weights(path)


def parts(weights: Weights) -> tuple[str, ...]:
    """The networks of a training state; none of anything else."""
    if isinstance(weights, TrainingState):
        return weights.parts
    return networks(weights.record) if isinstance(weights, CheckpointWeights) else ()


def known(name: str) -> Known:
    """The configuration of a network in a file, or of a published one. Raises: UsageError; as `open_weights`."""
    if not Path(name).exists():
        try:
            config = presets.config(presets.find(name).net)
        except presets.PresetError as error:
            raise UsageError(f"--config-from {name}: there is no such file, and {error}") from None
        return Known(config, None, f"the configuration of {name}")
    with open_weights(Path(name)) as weights:
        return Known(weights.config, weights.encoder, f"the configuration of {name}")


def _no_config(path: Path, config_from: str | None):
    if config_from is not None:
        raise UsageError(f"{path}: says itself how its network is configured; --config-from is for training states")


def _part(state: TrainingState | CheckpointWeights, part: str) -> Weights:
    """One of the networks of a training state."""
    try:
        if part not in parts(state):
            raise SnapshotError(f"{state.path}: has no weights {part!a:.40}; it has {', '.join(parts(state))}")
        return chosen(state, part) if isinstance(state, TrainingState) else _of_checkpoint(state, part)
    except BaseException:
        state.close()
        raise


def _of_checkpoint(state: CheckpointWeights, part: str) -> CheckpointWeights:
    """Of an orbax folder or safetensors file, all of which is checked."""
    for name in state.tensors:
        for _ in state.chunks(name):
            pass
    state.check()
    start = f"{part}/"
    names = {name: torch_name(name.removeprefix(start)) for name in state.tensors if name.startswith(start)}
    return dataclasses.replace(
        state,
        tensors={names[name]: state.tensors[name] for name in names},
        leaves={names[name]: state.leaves[name] for name in names},
        record=_record(state.record, part),
        hashes={},
    )


def _record(record: Record, part: str) -> Record:
    std = next((std for std in record.training.stds if average_part(std) == part), None) if record.training else None
    source = dataclasses.replace(record.source, ema_std=std) if record.source else None
    return dataclasses.replace(record, training=None, source=source, digest="")
