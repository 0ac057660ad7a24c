"""Tensors on their way to and from a checkpoint, whatever its format, and the digest that is kept of them."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.dtypes import DTYPES
from jax_edm2.record import DIGEST, Record, tensors_digest

if TYPE_CHECKING:
    import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, not of this project, or does not hold the network that it says."""


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: `chunks()` yields its little-endian C-ordered bytes, piece by piece.

    A piece may be a view that is valid only until the next is asked for.
    """

    dtype: str  # one of DTYPES
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def nbytes(self) -> int:
        return DTYPES[self.dtype].size * math.prod(self.shape)


def stored_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The dtype of all tensors, or several joined by '+'."""
    return "+".join(sorted({tensor.dtype for tensor in tensors.values()}))


class Digest:
    """The digest of tensors that are read one after the other, to be held to what the record says."""

    def __init__(self):
        self._lines: dict[str, tuple[str, tuple[int, ...], str]] = {}

    def add(self, name: str, dtype: str, shape: tuple[int, ...], sha256: str):
        """Of a tensor: its path in the tree, and the sha256 of its little-endian C-ordered bytes, in hexadecimal."""
        self._lines[name] = dtype, shape, sha256

    def add_array(self, name: str, array: "np.ndarray"):
        """Likewise, of an array, whose bytes are hashed here."""
        import numpy as np

        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.add(name, str(array.dtype), array.shape, hashlib.sha256(data.data).hexdigest())

    @property
    def value(self) -> str:
        return tensors_digest(self._lines)

    def check(self, path: Any, record: Record):
        """Raises: CheckpointError."""
        found = self.value
        if found != record.digest:
            raise CheckpointError(
                f"{path}: its tensors were altered: their digest is {found[:23]}..., and its record says "
                f"{record.digest[:23]}...; convert the snapshot again, or fetch the checkpoint again"
            )


class Hashes:
    """Of tensors whose bytes come piece by piece, of each in order."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self._running = {name: hashlib.sha256() for name in tensors}
        self._known: dict[str, str] = {}

    def update(self, name: str, chunk: "bytes | memoryview"):
        self._running[name].update(chunk)

    def restore(self, name: str, sha256: str):
        """What a process that was killed has found of a tensor, which therefore does not come again."""
        self._known[name] = sha256

    def of(self, name: str) -> str:
        """The sha256 of what has come of a tensor, in hexadecimal."""
        return self._known.get(name) or self._running[name].hexdigest()

    @property
    def digest(self) -> str:
        """Of all of them."""
        return tensors_digest({name: (t.dtype, t.shape, self.of(name)) for name, t in self._tensors.items()})


def hashed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Digest]:
    """The same tensors, and what will be their digest when the chunks of all have been read."""
    digest = Digest()

    def watched(name: str, tensor: Tensor) -> Tensor:
        def chunks():
            sha = hashlib.sha256()
            for chunk in tensor.chunks():
                sha.update(chunk)
                yield chunk
            digest.add(name, tensor.dtype, tensor.shape, sha.hexdigest())

        return Tensor(tensor.dtype, tensor.shape, chunks)

    return {name: watched(name, tensor) for name, tensor in tensors.items()}, digest


def check_digest(path: Any, record: Record):
    """Is there a digest that tensors can be held to? Raises: CheckpointError."""
    if not DIGEST.fullmatch(record.digest):
        raise CheckpointError(
            f"{path}: its record has no digest of its tensors, so nobody can tell whether they are what they were; "
            "convert the snapshot again, or load it with check=False"
        )


def refuse_to_lose(path: Path, unless: str | None = None):
    """No folder, link or device is ever replaced, even if told to overwrite; a folder with the file `unless` may be."""
    if path.is_dir() and not (unless and (path / unless).exists()):
        raise CheckpointError(f"{path}: is a folder and would be lost; choose another output")
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        raise CheckpointError(f"{path}: is a link or a device and would be lost; choose another output")
