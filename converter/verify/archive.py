"""The zip archive that a truth file is: stored members, one right behind the other, as `TruthWriter` makes them.

    [local header, name, 20 bytes for zip64] bytes of the member     ... for every member
    central directory, which says the same again; its end

Nothing else is accepted: what is compressed, encrypted, overlaps or leaves gaps is refused before any of it is read.
"""

import contextlib
import os
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

MOST_MEMBERS = 50_000  # a network from S up has 560 for each seed, and three for each parameter
MOST_DIRECTORY = 8 * 2**20  # bytes: 160 for each member
LOCAL_HEADER, ZIP64_FIELD = 30, 20  # bytes before a member, beside its name
_END, _END64, _LOCATOR = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, KeyError, EOFError, OverflowError, RuntimeError)


class ArchiveError(ValueError):
    """A file that is no such archive. The message is a phrase: 'is cut short'."""


def stored_members(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """(start, size) of every member's bytes, by name, in their order in the file. Raises: ArchiveError, OSError."""
    count = _check_end(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except _BROKEN as error:
        raise ArchiveError(f"is a damaged zip archive ({error})") from None
    if len(entries) != count:
        raise ArchiveError(f"is a damaged zip archive: it counts {count:,} members and lists {len(entries):,}")
    found: dict[str, tuple[int, int]] = {}
    at = 0
    for entry in entries:
        name = entry.filename
        if name in found:
            raise ArchiveError(f"has {name!a:.100} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits or entry.compress_size != entry.file_size:
            raise ArchiveError(f"has {name!a:.100} compressed or encrypted")
        if entry.header_offset != at or name != entry.orig_filename or not name.isascii():
            raise ArchiveError(f"has {name!a:.100} where it does not belong")
        start = at + LOCAL_HEADER + len(name) + ZIP64_FIELD
        found[name] = start, entry.file_size
        at = start + entry.file_size
    if at != end:
        raise ArchiveError("has gaps between its members")
    return found


def _check_end(file: BinaryIO) -> int:
    """How many members the archive says it has; its end is that of the file, and zipfile has little to read."""
    size = file.seek(0, os.SEEK_END)
    tail = _read_at(file, max(size - 98, 0), min(size, 98))
    if tail[-22:-18] != _END:
        raise ArchiveError("is no zip archive, or cut short")
    disk, first, here, count, directory, offset, comment = struct.unpack("<4H2IH", tail[-18:])
    length = 22
    if tail[-42:-38] == _LOCATOR and len(tail) == 98 and tail[:4] == _END64:
        disk, first, here, count, directory, offset = struct.unpack("<2I4Q", tail[16:56])
        length = 98
    if (disk, first, comment) != (0, 0, 0) or here != count or offset + directory + length != size:
        raise ArchiveError("is no zip archive of one piece")
    if count > MOST_MEMBERS or directory > MOST_DIRECTORY:
        raise ArchiveError(f"has {count:,} members in a directory of {directory:,} bytes, more than is ever needed")
    return count


def beginning(file: BinaryIO, name: str, size: int) -> bytes:
    """The first bytes of a member that may be compressed; none if it cannot be read."""
    with contextlib.suppress(*_BROKEN):
        if _check_end(file) > 10_000:  # what is read twice should be small
            return b""
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo(name).compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                with archive.open(name) as member:
                    return member.read(size)
    return b""


def read_member(file: BinaryIO, start: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a .npy member. Raises: ArchiveError."""
    header = npy_header(dtype, shape)
    if _read_at(file, start, len(header)) != header:
        raise ArchiveError(f"is no .npy file of {dtype} {list(shape)}")
    array = np.empty(shape, dtype)
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise ArchiveError("is cut short")
        rest = rest[count:]
    return array


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the values in a .npy file of version 1.0 in C order: the same with every numpy."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode("ascii")


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
