"""Files that are read at offsets, and ranges of their bytes that stay where they are."""

import os
from dataclasses import dataclass

from ..errors import ConverterError


class PickleError(ConverterError):
    """A pickle that is damaged, or that asks for something a snapshot does not need.

    texts: the strings that had been read by then, which may tell what the file is instead.
    """

    texts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ByteRange:
    """Bytes that stay in the file, or, if mutable, a bytearray: not everything in Python takes one for the other."""

    offset: int
    length: int
    mutable: bool = False


class File:
    """A regular file, read at offsets. Its size is fixed when it is opened; a file that shrinks is an error."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises: PickleError."""
        if offset + length > self.size:
            raise PickleError(f"ends at byte {self.size}, inside something that reaches to byte {offset + length}")
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, buffer: memoryview, offset: int):
        """Fill `buffer` from `offset`. Raises: PickleError."""
        while buffer:
            count = os.preadv(self.descriptor, [buffer], offset)
            if count == 0:
                raise PickleError("became shorter while it was read")
            buffer, offset = buffer[count:], offset + count
