"""Converted checkpoints as files that weights are read from: what converting back, or on, begins with."""

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jax_edm2.checkpoint import opened
from jax_edm2.config import check_tree
from jax_edm2.dtypes import DTYPES
from jax_edm2.messages import listing
from jax_edm2.orbax_checkpoint import OrbaxCheckpoint
from jax_edm2.record import Record
from jax_edm2.safetensors_format import CODES
from jax_edm2.state_layout import check_state
from jax_edm2.tensors import CheckpointError, Digest, check_digest

from .formats.file import ByteRange, File
from .formats.torch_legacy import TensorRecord
from .names import torch_name
from .weights import Weights

if TYPE_CHECKING:
    import numpy as np

GROUP = 2**25  # bytes that are read of an orbax folder at once, or one tensor
KEPT = 3  # groups


@dataclass(frozen=True)
class CheckpointWeights(Weights):
    """Of a checkpoint, or of a training state in an orbax folder. What is read of it is held to its record's digest.

    leaves: what a tensor is called in the file. folder: an orbax folder's tensors, where there is no file.
    """

    record: Record
    leaves: Mapping[str, str]
    folder: "_Folder | None" = None
    hashes: dict[str, str] = field(default_factory=dict)  # of the tensors whose chunks have all been read

    def tree_path(self, name: str) -> str:
        return name if self.record.training else super().tree_path(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        sha = hashlib.sha256()
        for chunk in super().chunks(name) if self.folder is None else [self._bytes(name)]:
            sha.update(chunk)
            yield chunk
        self.hashes[name] = sha.hexdigest()

    def read(self, name: str) -> "np.ndarray":
        return super().read(name) if self.folder is None else self.folder.array(self.leaves[name]).copy()

    def _bytes(self, name: str) -> memoryview:
        assert self.folder is not None
        return self.folder.array(self.leaves[name]).reshape(-1).view("uint8").data

    def check(self):
        """All chunks have been read. Raises: CheckpointError if they are not what the record says."""
        if not self.record.digest:  # a part of what has been checked as a whole
            return
        digest = Digest()
        for name, sha256 in self.hashes.items():
            digest.add(self.tree_path(name), self.tensors[name].dtype, self.tensors[name].shape, sha256)
        digest.check(self.path, self.record)


class _Folder:
    """The tensors of an orbax folder, which orbax reads many at a time; a few such groups are kept."""

    def __init__(self, stored: OrbaxCheckpoint):
        self._stored, self._lock = stored, threading.Lock()
        self._groups: list[list[str]] = []
        self._number: dict[str, int] = {}
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        size = GROUP
        for name, shape in sorted(stored.shapes.items()):
            if size >= GROUP:
                self._groups.append([])
                size = 0
            self._groups[-1].append(name)
            self._number[name] = len(self._groups) - 1
            size += math.prod(shape) * DTYPES[stored.dtypes[name]].size

    def array(self, name: str) -> "np.ndarray":
        """Raises: CheckpointError."""
        number = self._number[name]
        with self._lock:
            if (group := self._kept.pop(number, None)) is None:
                group = self._stored.arrays(self._groups[number])
            self._kept[number] = group  # as the youngest
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return group[name]


def read_checkpoint(path: str | os.PathLike) -> CheckpointWeights:
    """Open a checkpoint. Raises: CheckpointError."""
    path = Path(path)
    with opened(path) as stored:
        record = stored.record
        check_digest(path, record)
        of_state = record.training is not None
        problems = check_state(record, stored.shapes) if of_state else check_tree(record.config, stored.shapes)
        if problems:
            what = "training state" if of_state else "network"
            raise CheckpointError(f"{path}: does not hold the {what} of its record: " + listing(problems))

        def name_of(leaf: str) -> str:
            return leaf if of_state else torch_name(leaf)

        leaves = {name_of(leaf): leaf for leaf in stored.shapes}
        known = record.config, record.encoder, record.loss
        if isinstance(stored, OrbaxCheckpoint):
            found = {name: (stored.dtypes[leaf], stored.shapes[leaf], 0) for name, leaf in leaves.items()}
            return CheckpointWeights(path, None, known[0], _tensors(found), *known[1:], record, leaves, _Folder(stored))
        entries = {name: stored.entries[leaf] for name, leaf in leaves.items()}
        found = {name: (CODES[entry.dtype].name, entry.shape, entry.offset) for name, entry in entries.items()}
        file = File(os.dup(stored.descriptor))
        return CheckpointWeights(path, file, known[0], _tensors(found), *known[1:], record, leaves)


def _tensors(found: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, TensorRecord]:
    """Of (dtype, shape, where it begins)."""
    return {
        name: TensorRecord(dtype, shape, ByteRange(start, math.prod(shape) * DTYPES[dtype].size), (*range(len(shape)),))
        for name, (dtype, shape, start) in found.items()
    }
