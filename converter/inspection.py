"""What a file is, and whether it is sound: a snapshot, a checkpoint or a truth."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_edm2.checkpoint import load, read_record
from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.dtypes import not_finite
from jax_edm2.record import CHECK, Record

from .downloads.cache import sha256 as file_sha256
from .networks import record_of
from .opening import is_checkpoint
from .snapshot import read_snapshot
from .verify.truth import Truth

SNAPSHOT, CHECKPOINT, TRUTH = "snapshot", "checkpoint", "truth"


@dataclass(frozen=True)
class Inspection:
    """kind: SNAPSHOT, CHECKPOINT or TRUTH. about: what it says of itself, as JSON."""

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


def kind_of(path: Path) -> str:
    """By its name; a snapshot if that says nothing."""
    return CHECKPOINT if is_checkpoint(path) else TRUTH if path.suffix == ".npz" else SNAPSHOT


def inspect(path: Path) -> Inspection:
    """Nothing but what a file says of itself is read. Raises: ConverterError, CheckpointError, OSError."""
    kind = kind_of(path)
    if kind == CHECKPOINT:
        return Inspection(path, kind, _about(read_record(path)))
    if kind == TRUTH:
        with Truth(path) as truth:
            facts = truth.facts
            names = ("snapshot", "reference", "environment", "seconds")
            about = {"plan": vars(facts.plan), **{name: getattr(facts, name) for name in names}}
            return Inspection(path, kind, {**about, "config": facts.config.to_json()})
    with read_snapshot(path) as snapshot:
        about = _about(record_of(snapshot))
        return Inspection(path, kind, {**about, "source": {**about["source"], "sha256": file_sha256(path)}})


def check(path: Path) -> Soundness:
    """All of it is read, and held to what it should be. Raises: as `inspect`, for what is broken or altered."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    kind = kind_of(path)
    if kind == TRUTH:
        with Truth(path) as truth:
            counts = {name: not_finite(np.asarray(truth[name])) for name in truth.names}
        return Soundness(path, kind, len(counts), None, {name: count for name, count in counts.items() if count})
    if kind == CHECKPOINT:
        record = read_record(path)
        leaves = flatten_dict(load(path)[1], sep="/")
        counts = {name: not_finite(np.asarray(leaf)) for name, leaf in leaves.items()}
    else:
        with read_snapshot(path) as snapshot:
            record = record_of(snapshot)
            counts = {name: not_finite(snapshot.read(name)) for name in snapshot.tensors}
    return Soundness(path, kind, len(counts), record.digest, {name: count for name, count in counts.items() if count})


def _about(record: Record) -> dict[str, Any]:
    fields = json.loads(record.to_json())
    del fields[CHECK]
    return {**fields, "parameters": _parameters(record.config)}


def _parameters(config: EDM2Config) -> int:
    return sum(math.prod(shape) for name, shape in expected_tree(config).items() if name.startswith("params/"))


def _rows(above: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _rows(f"{above}.{name}" if above else name, below)
    elif value is not None:
        yield above, value if isinstance(value, str) else json.dumps(value, default=list)
