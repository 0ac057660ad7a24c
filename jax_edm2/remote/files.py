"""What files in all stores have in common."""

from abc import ABC, abstractmethod
from typing import Any

from jax_edm2.tensors import CheckpointError

RETRIES = 5  # of a request
WAIT = 0.5  # seconds before the first of them, and twice as many before each that follows
SILENCE = 20.0  # seconds
SLOWEST = 120.0  # seconds for a range


class NotThereError(CheckpointError):
    """A bucket or repository that can be read, and has nothing of this name; or a bucket that is not there."""


class RemoteFile(ABC):
    """A file in a store. url: as it was given. size: in bytes. version: another one for other contents."""

    threads = 8  # that read at once
    piece = 2**23  # bytes that are asked for at a time
    url: str
    size: int
    version: str

    @abstractmethod
    def read(self, first: int, last: int) -> Any:
        """The bytes from `first` to before `last`, as a buffer. Raises: CheckpointError."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` with what is at `offset`, and return how many bytes that is. Raises: CheckpointError."""
        data = memoryview(self.read(offset, offset + len(view)))
        if len(data) != len(view):
            raise CheckpointError(f"{self.url}: the store sends {len(data):,} bytes where {len(view):,} were asked for")
        view[:] = data
        return len(view)
