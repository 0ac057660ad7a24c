"""What a truth file knows parameters by, so that a checkpoint can be held to them without the snapshot."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ..downloads.cache import sha256
from ..weights import Weights


def hash_of(path: Path) -> str | None:
    """The sha256 of a file; a folder has none."""
    return None if path.is_dir() else sha256(path)


def parameter_hashes(snapshot: Weights) -> dict[str, Any]:
    """Shape and sha256 of every tensor's float32 bytes, by its name in the snapshot."""
    found = {}
    for name, record in snapshot.tensors.items():
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.ascontiguousarray(snapshot.read(name).astype(np.float32), "<f4")
        found[name] = {"shape": list(record.shape), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    return found
