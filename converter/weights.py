"""The weights of one network in an open file, whatever kind of file it is."""

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from jax_edm2.config import EDM2Config
from jax_edm2.dtypes import DTYPES
from jax_edm2.record import Encoder, Loss

from .errors import SnapshotError
from .formats.file import File, PickleError
from .formats.torch_legacy import TensorRecord
from .names import jax_path

if TYPE_CHECKING:
    import numpy as np

CHUNK = 2**20  # bytes of a tensor read at a time: stays in the processor's cache


def in_shape(record: TensorRecord, data: bytes | bytearray) -> "np.ndarray":
    """A tensor's bytes, as they lie in the file, as an array, C-ordered."""
    import numpy as np

    array = np.frombuffer(data, DTYPES[record.dtype].numpy)
    stored = array.reshape([record.shape[axis] for axis in record.order])
    return np.array(stored.transpose(np.argsort(record.order)), order="C", copy=None)


@dataclass(frozen=True)
class Weights:
    """Tensors are read from the file when asked for; close it, or use it in a `with` statement."""

    path: Path
    file: File | None  # None of what is in memory
    config: EDM2Config
    tensors: Mapping[str, TensorRecord]  # by NVlabs' name, in the order of the file
    encoder: Encoder | None
    loss: Loss | None

    def tree_path(self, name: str) -> str:
        """Where a tensor is in the JAX tree."""
        return jax_path(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The little-endian bytes of a tensor, at most CHUNK at a time, each valid until the next is asked for."""
        record, data, size = self.tensors[name], self.tensors[name].data, CHUNK
        if not record.is_c_ordered:
            yield self.read(name).reshape(-1).view("uint8").data
            return
        buffer, crc = memoryview(bytearray(min(size, data.length))), 0
        for done in range(0, data.length, size):
            part = buffer[: data.length - done]
            self._read_into(part, data.offset + done)
            if record.crc is not None:
                crc = zlib.crc32(part, crc)
            yield part
        self._check(name, crc)

    def read(self, name: str) -> "np.ndarray":
        """A tensor as a new array, C-ordered."""
        record = self.tensors[name]
        data = bytearray(record.data.length)
        self._read_into(memoryview(data), record.data.offset)
        if record.crc is not None:
            self._check(name, zlib.crc32(data))
        return in_shape(record, data)

    def read_part(self, name: str, start: int, stop: int, room: memoryview) -> "np.ndarray":
        """The values of a tensor from `start` up to `stop`, in its C order: an array of one axis.

        room: of as many bytes, or more, where that array is.
        """
        import numpy as np

        record = self.tensors[name]
        size = DTYPES[record.dtype].size
        part = room[: (stop - start) * size]
        if record.is_c_ordered:
            self._read_into(part, record.data.offset + start * size)
        else:
            part[:] = self.read(name).reshape(-1)[start:stop].view("uint8").data
        return np.frombuffer(part, DTYPES[record.dtype].numpy)

    def _read_into(self, buffer: memoryview, offset: int):
        assert self.file is not None
        try:
            self.file.read_into(buffer, offset)
        except PickleError as error:
            raise SnapshotError(f"{self.path}: {error}") from None

    def _check(self, name: str, crc: int):
        """Raises: SnapshotError if the tensor has another checksum."""
        wanted = self.tensors[name].crc
        if wanted is not None and crc != wanted:
            raise SnapshotError(f"{self.path}: is damaged: {name} does not have its checksum; fetch the file again")

    def close(self):
        if self.file is not None:
            os.close(self.file.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.close()
