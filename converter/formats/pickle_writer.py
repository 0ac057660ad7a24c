"""Writes pickles of what a snapshot or training state is made of, as a stream: a tensor is never all in memory.

Nothing that is named in them is imported, so what reads them as classes of torch's, numpy's and NVlabs' need not be
here. (Python's own pickler can only name what it can import.)
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .pickle_reader import Global


@dataclass(frozen=True)
class Call:
    """What a function returns. items: what is then set in it; state: what it is then built with."""

    function: Global
    arguments: tuple
    items: dict | None = None
    state: Any = None


@dataclass(frozen=True)
class New:
    """A new instance of a class, without arguments, likewise."""

    cls: Global
    items: dict | None = None
    state: Any = None


@dataclass(frozen=True)
class Payload:
    """Bytes that come piece by piece when they are written."""

    length: int
    chunks: Callable[[], Iterable[bytes | memoryview]]


@dataclass(frozen=True)
class PersistentId:
    """What the one who unpickles looks up."""

    value: Any


class PickleWriter:
    """protocol: 4, or 2, in which there are no Payloads."""

    def __init__(self, write: Callable[[bytes | memoryview], Any], protocol: int):
        self._write, self._protocol = write, protocol
        self._memo: dict[Any, int] = {}

    def dump(self, value: Any):
        self._write(bytes([0x80, self._protocol]))
        self._value(value)
        self._write(b".")

    def _value(self, value: Any):
        match value:
            case None:
                self._write(b"N")
            case bool():
                self._write(b"\x88" if value else b"\x89")
            case int():
                self._integer(value)
            case float():
                self._write(b"G" + struct.pack(">d", value))
            case str() | Global():
                self._once(value)
            case tuple():
                self._write(b"(")
                for item in value:
                    self._value(item)
                self._write(b"t")
            case list():
                self._write(b"]")
                if value:
                    self._write(b"(")
                    for item in value:
                        self._value(item)
                    self._write(b"e")
            case dict():
                self._write(b"}")
                self._items(value)
            case bytes():
                self._payload(Payload(len(value), lambda: [value]))
            case Payload():
                self._payload(value)
            case PersistentId():
                self._value(value.value)
                self._write(b"Q")
            case Call() | New():
                self._value(value.function if isinstance(value, Call) else value.cls)
                self._value(value.arguments if isinstance(value, Call) else ())
                self._write(b"R" if isinstance(value, Call) else b"\x81")
                self._items(value.items or {})
                if value.state is not None:
                    self._value(value.state)
                    self._write(b"b")
            case _:
                raise TypeError(f"a {type(value).__name__} cannot be pickled")

    def _items(self, items: dict):
        if items:
            self._write(b"(")
            for key, item in items.items():
                self._value(key)
                self._value(item)
            self._write(b"u")

    def _once(self, value: str | Global):
        """Text and globals are written where they come first, and then fetched."""
        if (number := self._memo.get(value)) is not None:
            self._write(b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number))
            return
        self._memo[value] = number = len(self._memo)
        if isinstance(value, Global):
            self._write(f"c{value.module}\n{value.name}\n".encode("ascii"))
        else:
            text = value.encode("utf-8")
            self._write(b"X" + struct.pack("<I", len(text)) + text)
        self._write(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def _integer(self, value: int):
        if 0 <= value < 256:
            self._write(b"K" + bytes([value]))
        elif -(2**31) <= value < 2**31:
            self._write(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._write(b"\x8a" + bytes([len(data)]) + data)

    def _payload(self, payload: Payload):
        if self._protocol < 4:
            raise TypeError("bytes have no place in this protocol")
        if payload.length < 2**32:
            self._write(b"B" + struct.pack("<I", payload.length))
        else:
            self._write(b"\x8e" + struct.pack("<Q", payload.length))
        for chunk in payload.chunks():
            self._write(chunk)
