"""The parameters of a JAX network beside those of the snapshot, bit for bit."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ...names import torch_name
from ...weights import Weights


def compare_parameters(
    variables: Any, expected: Mapping[str, Any], snapshot: Weights | None = None
) -> list[tuple[str, str]]:
    """Names of parameters and buffers that are not exactly equal after the cast to float32, and how they differ.

    expected: shape and sha256 of every tensor, by its name in the snapshot. With the snapshot itself the message says
    how much is different.
    """
    leaves = {torch_name(path): value for path, value in flatten_dict(variables, sep="/").items()}
    differing = []
    owners = {entry["sha256"]: name for name, entry in expected.items()}
    for name, entry in expected.items():
        if name not in leaves:
            differing.append((name, "is missing"))
            continue
        value = np.asarray(leaves[name], "<f4", order="C")
        if list(value.shape) != entry["shape"]:
            differing.append((name, f"has shape {list(value.shape)}, should be {entry['shape']}"))
            continue
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        if digest == entry["sha256"]:
            continue
        why = "differs"
        if digest in owners:
            why = f"holds the values of {owners[digest]}"
        elif snapshot is not None:
            why = _how_different(value, np.asarray(snapshot.read(name), np.float32))
        differing.append((name, why))
    differing += [(name, "is not in the snapshot") for name in leaves if name not in expected]
    return differing


def _how_different(value: np.ndarray, exact: np.ndarray) -> str:
    bits, wanted = value.view(np.uint32), exact.view(np.uint32)
    unequal = np.argwhere(bits != wanted)
    if not len(unequal):
        return "differs from the truth file's, though not from the snapshot's"
    first = tuple(int(i) for i in unequal[0])
    if value.ndim >= 2 and value.shape[0] == value.shape[1] and np.array_equal(value, exact.swapaxes(0, 1)):
        return "is transposed"
    place = f" at {list(first)}" if first else ""
    return (
        f"differs in {len(unequal):,} of {value.size:,} values, first{place}: "
        f"{float(value[first]):.9g}, should be {float(exact[first]):.9g}"
    )
