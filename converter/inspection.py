"""What a file is, and whether it is sound: a snapshot, a checkpoint, a training state or a truth."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_edm2.checkpoint import read_record
from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.dtypes import not_finite
from jax_edm2.record import CHECK, Record

from .checkpoint_weights import CheckpointWeights
from .downloads.cache import sha256 as file_sha256
from .flops import paper_flops
from .networks import record_of
from .opening import is_checkpoint, open_weights
from .training_state import TrainingState
from .verify.truth import Truth

SNAPSHOT, CHECKPOINT, TRAINING, TRUTH = "snapshot", "checkpoint", "training state", "truth"


@dataclass(frozen=True)
class Inspection:
    """kind: SNAPSHOT, CHECKPOINT, TRAINING or TRUTH. about: what it says of itself, as JSON."""

    path: Path
    kind: str
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "kind": self.kind, "about": self.about}

    def rows(self) -> Iterator[tuple[str, str]]:
        """The same as names, with dots between, and values."""
        yield "kind", self.kind
        yield from _rows("", self.about)


@dataclass(frozen=True)
class Soundness:
    """tensors: how many were read and found to be what they should be. not_finite: values that are NaN or infinite."""

    path: Path
    kind: str
    tensors: int
    digest: str | None
    not_finite: dict[str, int]

    @property
    def sound(self) -> bool:
        return not self.not_finite

    def to_json(self) -> dict[str, Any]:
        fields = {"tensors": self.tensors, "digest": self.digest, "not_finite": self.not_finite, "sound": self.sound}
        return {"path": str(self.path), "kind": self.kind, **fields}


def inspect(path: Path) -> Inspection:
    """Nothing but what a file says of itself is read. Raises: ConverterError, CheckpointError, OSError."""
    if path.suffix == ".npz":
        with Truth(path) as truth:
            facts = truth.facts
            names = ("snapshot", "reference", "environment", "seconds")
            about = {"plan": vars(facts.plan), **{name: getattr(facts, name) for name in names}}
            return Inspection(path, TRUTH, {**about, "config": facts.config.to_json()})
    if is_checkpoint(path):
        record = read_record(path)
        return Inspection(path, CHECKPOINT if record.training is None else TRAINING, _about(record))
    with open_weights(path) as weights:
        about = _about(record_of(weights))
    kind = TRAINING if isinstance(weights, TrainingState) else SNAPSHOT
    return Inspection(path, kind, {**about, "source": {**about["source"], "sha256": file_sha256(path)}})


def check(path: Path) -> Soundness:
    """All of it is read, and held to what it should be. Raises: as `inspect`, for what is broken or altered."""
    import numpy as np

    if path.suffix == ".npz":
        with Truth(path) as truth:
            counts = {name: not_finite(np.asarray(truth[name])) for name in truth.names}
        return Soundness(path, TRUTH, len(counts), None, {name: count for name, count in counts.items() if count})
    found: dict[str, int] = {}
    with open_weights(path) as weights:
        record = record_of(weights, not_finite=found)
        if isinstance(weights, CheckpointWeights):
            weights.check()
            found = {weights.tree_path(name): count for name, count in found.items()}
    network = CHECKPOINT if isinstance(weights, CheckpointWeights) else SNAPSHOT
    return Soundness(path, TRAINING if record.training else network, len(weights.tensors), record.digest, found)


def _about(record: Record) -> dict[str, Any]:
    fields = json.loads(record.to_json())
    del fields[CHECK]
    return {**fields, "parameters": _parameters(record.config), "gflops": paper_flops(record.config) / 1e9}


def _parameters(config: EDM2Config) -> int:
    return sum(math.prod(shape) for name, shape in expected_tree(config).items() if name.startswith("params/"))


def _rows(above: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _rows(f"{above}.{name}" if above else name, below)
    elif value is not None:
        yield above, value if isinstance(value, str) else json.dumps(value, default=list)
