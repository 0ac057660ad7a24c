"""Converted checkpoints as files that weights are read from: what converting back, or on, begins with."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jax_edm2.checkpoint import opened
from jax_edm2.config import check_tree
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


@dataclass(frozen=True)
class CheckpointWeights(Weights):
    """Of a checkpoint, or of a training state in an orbax folder. What is read of it is held to its record's digest.

    arrays: all of an orbax folder's, which are in memory; a safetensors file's are read when they are asked for.
    """

    record: Record
    arrays: "dict[str, np.ndarray] | None" = None
    hashes: dict[str, str] = field(default_factory=dict)  # of the tensors whose chunks have all been read

    def tree_path(self, name: str) -> str:
        return name if self.record.training else super().tree_path(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        sha = hashlib.sha256()
        for chunk in super().chunks(name) if self.arrays is None else [self._bytes(name)]:
            sha.update(chunk)
            yield chunk
        self.hashes[name] = sha.hexdigest()

    def read(self, name: str) -> "np.ndarray":
        return super().read(name) if self.arrays is None else self.arrays[name].copy()

    def _bytes(self, name: str) -> memoryview:
        assert self.arrays is not None
        return self.arrays[name].reshape(-1).view("uint8").data

    def check(self):
        """All chunks have been read. Raises: CheckpointError if they are not what the record says."""
        if not self.record.digest:  # a part of what has been checked as a whole
            return
        digest = Digest()
        for name, sha256 in self.hashes.items():
            digest.add(self.tree_path(name), self.tensors[name].dtype, self.tensors[name].shape, sha256)
        digest.check(self.path, self.record)


def read_checkpoint(path: str | os.PathLike) -> CheckpointWeights:
    """Open a checkpoint. Of an orbax folder, all tensors come into memory. Raises: CheckpointError."""
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

        if isinstance(stored, OrbaxCheckpoint):
            arrays = {name_of(leaf): array for leaf, array in stored.arrays().items()}
            tensors = {
                name: TensorRecord(str(array.dtype), array.shape, ByteRange(0, array.nbytes), (*range(array.ndim),))
                for name, array in arrays.items()
            }
            return CheckpointWeights(path, None, record.config, tensors, record.encoder, record.loss, record, arrays)
        tensors = {
            name_of(leaf): TensorRecord(
                CODES[entry.dtype].name, entry.shape, ByteRange(entry.offset, entry.nbytes), (*range(len(entry.shape)),)
            )
            for leaf, entry in stored.entries.items()
        }
        file = File(os.dup(stored.descriptor))
        return CheckpointWeights(path, file, record.config, tensors, record.encoder, record.loss, record)
