"""Pickles and tensors as torch.save has written them since version 1.6: a zip archive of stored members.

    NAME/data.pkl       the pickle (protocol 2), in which every storage is a persistent id
    NAME/byteorder      'little'; files of before torch 2.1 have none, and are little-endian
    NAME/data/KEY       the elements of a storage
    NAME/version, ...   what else torch notes, none of which is needed

All of the file is accounted for: member follows member, each with the header that the directory says it has, and none
is compressed. A TorchScript has code besides, compressed, which nobody reads here. Sources: torch's
`serialization._save`, and PKWARE's APPNOTE.TXT for the archive.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax_edm2.messages import brief

from .file import ByteRange, File, PickleError
from .numpy_pickle import BUILDS, NUMBERS, DtypeRecord
from .pickle_reader import Budget, Global, Instance, Interpreter, fill_instance
from .torch_legacy import (
    COUNTS,
    LOCATION,
    ORDERED_DICT,
    REBUILD_TENSOR,
    STORAGE_TYPES,
    Storage,
    TensorRecord,
    empty_dict,
    is_count,
    metadata,
    size_of,
    tensor,
)

EASY_DICT = Global("dnnlib.util", "EasyDict")

MOST_MEMBERS = 20_000  # a training state of the deepest published network has 1,400
MOST_DIRECTORY = 4 * 2**20  # bytes
MOST_PICKLE = 8 * 2**20
LOCAL, CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
END64, END = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4s4H2IH")
DESCRIBED = 8  # the flag for sizes that come behind a member
FLAGS = DESCRIBED | 0x800  # and that for names in UTF-8
FULL = 0xFFFFFFFF  # of a number that stands elsewhere, in 64 bits
KEY = re.compile(r"\d{1,9}", re.ASCII)
CHUNK = 2**20
CODE, DEFLATED = "code/", 8  # the folder of a TorchScript's sources, and how they are compressed


@dataclass(frozen=True)
class Member:
    data: ByteRange
    crc: int


def members(file: File, code: bool = False) -> dict[str, Member]:
    """The archive's members by name, without the folder that all are in.

    code: those in the folder CODE may be compressed; none of them is named. Raises: PickleError.
    """
    count, start, length = _end(file)
    directory = file.read(start, length)
    found: dict[str, Member] = {}
    folder, at, reached = None, 0, 0
    for _ in range(count):
        if len(directory) - at < CENTRAL.size:
            raise PickleError("is a damaged zip archive: its directory breaks off")
        (mark, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, offset) = CENTRAL.unpack_from(
            directory, at
        )
        at += CENTRAL.size
        fields = [directory[at + sum(lengths[:i]) : at + sum(lengths[: i + 1])] for i in range(3)]
        at += sum(lengths)
        if mark != b"PK\1\2" or at > len(directory):
            raise PickleError("is a damaged zip archive: its directory breaks off")
        text, extra, _ = fields
        name = _name(text)
        in_code = code and name.partition("/")[2].startswith(CODE)
        if flags & ~FLAGS or (method and not (in_code and method == DEFLATED)):
            raise PickleError(f"has the member {brief(name)} compressed or encrypted")
        size, packed, offset, disk = _in_64_bits(extra, (size, packed, offset), disk, name)
        if disk or (size != packed and not method):
            raise PickleError(f"has the member {brief(name)} in pieces")
        top, _, rest = name.partition("/")
        if folder not in (None, top) or not rest:
            raise PickleError(f"has the member {brief(name)} outside its folder")
        if rest in found:
            raise PickleError(f"has the member {brief(name)} twice")
        if offset != reached:
            raise PickleError(f"has the member {brief(name)} where it does not belong: members overlap or leave gaps")
        folder = top
        data, reached = _local(file, offset, text, method, (size, packed), crc, bool(flags & DESCRIBED), start)
        found[rest] = Member(data, crc)
    if at != len(directory) or reached != start:
        raise PickleError("is a damaged zip archive: something lies between its members and its directory")
    return {name: member for name, member in found.items() if not code or not name.startswith(CODE)}


def _end(file: File) -> tuple[int, int, int]:
    """How many members there are, and where the directory lies and how long it is."""
    size = file.size
    tail = file.read(max(size - 98, 0), min(size, 98))
    if len(tail) < 22 or tail[-22:-18] != b"PK\5\6":
        raise PickleError("is no whole zip archive: it does not end as one; fetch it again")
    _, disk, first, here, count, length, start, comment = END.unpack(tail[-22:])
    before = 22
    if tail[-42:-38] == b"PK\6\7" and len(tail) == 98 and tail[:4] == b"PK\6\6":
        _, _, _, _, disk, first, here, count, length, start = END64.unpack(tail[:56])
        before = 98
    if disk or first or comment or here != count or start + length + before != size:
        raise PickleError("is no zip archive of one piece")
    if count > MOST_MEMBERS or length > MOST_DIRECTORY:
        raise PickleError(f"has {count:,} members in a directory of {length:,} bytes; training states have far fewer")
    return count, start, length


def _name(text: bytes) -> str:
    name = text.decode("utf-8", "replace")
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or "�" in name or any(part in ("", ".", "..") for part in parts):
        raise PickleError(f"has a member whose name is no path inside of it: {name!a:.100}")
    return name


def _in_64_bits(extra: bytes, numbers: tuple[int, int, int], disk: int, name: str) -> tuple[int, int, int, int]:
    """(size, packed size, offset), and the disk's number, where those that do not fit are in an extra field."""
    large = b""
    while extra:
        if len(extra) < 4 or len(extra) < 4 + (length := struct.unpack("<2H", extra[:4])[1]):
            raise PickleError(f"has the member {brief(name)} with a malformed extra field")
        if extra[:2] == b"\1\0":
            large = extra[4 : 4 + length]
        extra = extra[4 + length :]
    found = []
    for number in numbers:
        if number == FULL:
            if len(large) < 8:
                raise PickleError(f"has the member {brief(name)} without its size in 64 bits")
            (number,), large = struct.unpack("<Q", large[:8]), large[8:]
        found.append(number)
    if disk == 0xFFFF and len(large) >= 4:
        (disk,) = struct.unpack("<I", large[:4])
    return (*found, disk)  # type: ignore[return-value]


def _local(
    file: File, offset: int, text: bytes, method: int, sizes: tuple[int, int], crc: int, described: bool, end: int
) -> tuple[ByteRange, int]:
    """Where a member's bytes lie, and where the next member begins. sizes: of what is in it, and as it is stored."""
    what = brief(text.decode("utf-8", "replace"))
    if offset + LOCAL.size > end:
        raise PickleError(f"has the member {what} outside of its members")
    mark, _, flags, method_here, _, _, crc_here, packed, plain, *lengths = LOCAL.unpack(file.read(offset, LOCAL.size))
    start = offset + LOCAL.size + sum(lengths)
    after = start + sizes[1]
    if (
        mark != b"PK\3\4"
        or method_here != method
        or flags & ~FLAGS
        or bool(flags & DESCRIBED) != described
        or after > end
    ):
        raise PickleError(f"has the member {what} with a header unlike that of its directory")
    rest = file.read(offset + LOCAL.size, sum(lengths))
    if rest[: lengths[0]] != text:
        raise PickleError(f"has the member {what} under another name in its own header")
    if not described:
        plain, packed, *_ = _in_64_bits(rest[lengths[0] :], (plain, packed, 0), 0, what)
        sizes_found, crc_found = (plain, packed), crc_here
    else:
        form = "<4sI2Q" if max(*sizes, offset) >= FULL else "<4s3I"
        length = struct.calcsize(form)
        if after + length > end:
            raise PickleError(f"has the member {what} without what should be behind it")
        mark, crc_found, *both = struct.unpack(form, file.read(after, length))
        sizes_found, after = (both[1], both[0]), after + length
        if mark != b"PK\7\x08":
            raise PickleError(f"has the member {what} without what should be behind it")
    if sizes_found != sizes or crc_found != crc:
        raise PickleError(f"has the member {what} with a header unlike that of its directory")
    return ByteRange(start, sizes[1]), after


def check_crc(file: File, member: Member) -> bool:
    """Whether a member's bytes, all of which are read, have its checksum."""
    crc = 0
    for offset in range(0, member.data.length, CHUNK):
        length = min(CHUNK, member.data.length - offset)
        crc = zlib.crc32(file.read(member.data.offset + offset, length), crc)
    return crc == member.crc


def read(file: File) -> Any:
    """The pickle of an archive: plain containers, and a TensorRecord for every tensor. Raises: PickleError."""
    return _read(
        file,
        members(file),
        STORAGE_TYPES,
        globals_=frozenset({EASY_DICT, ORDERED_DICT, REBUILD_TENSOR, *STORAGE_TYPES, *NUMBERS}),
        calls={ORDERED_DICT: empty_dict, REBUILD_TENSOR: tensor, **NUMBERS},
        newobj=frozenset({EASY_DICT}),
        dicts=frozenset({EASY_DICT}),
        builds={dict: metadata, DtypeRecord: BUILDS[DtypeRecord]},
        keys=(str, int),
    )


def read_state_dict(file: File) -> dict[str, TensorRecord]:
    """Likewise, where all are tensors by name. Raises: PickleError."""
    kinds = {**STORAGE_TYPES, **COUNTS}
    value = _read(
        file,
        members(file),
        kinds,
        globals_=frozenset({ORDERED_DICT, REBUILD_TENSOR, *kinds}),
        calls={ORDERED_DICT: empty_dict, REBUILD_TENSOR: tensor},
        builds={dict: metadata},
    )
    if not isinstance(value, dict) or not all(isinstance(record, TensorRecord) for record in value.values()):
        raise PickleError("is a file of torch.save, but holds no state_dict: something in it is no tensor")
    return value


def is_script(file: File) -> bool:
    """Whether an archive is a TorchScript. Raises: PickleError."""
    return "constants.pkl" in members(file, code=True)


def read_script(file: File) -> Any:
    """The modules of a TorchScript: Instances whose states have their tensors and modules by name. Raises: PickleError.

    Their classes are of the file's own code, under __torch__.
    """
    kinds = {**STORAGE_TYPES, **COUNTS}
    return _read(
        file,
        members(file, code=True),
        kinds,
        globals_=frozenset({ORDERED_DICT, REBUILD_TENSOR, *kinds}),
        calls={ORDERED_DICT: empty_dict, REBUILD_TENSOR: tensor},
        classes=lambda module, _: module.split(".")[0] == "__torch__",
        builds={Instance: fill_instance},
    )


def _read(file: File, found: Mapping[str, Member], kinds: Mapping[Global, str], **allowed: Any) -> Any:
    """The pickle of an archive, with what `Interpreter` allows it. kinds: dtypes of storages."""
    for name in ("data.pkl", "byteorder"):
        if name in found and not check_crc(file, found[name]):
            raise PickleError(f"is damaged: its {name} does not have its checksum; fetch it again")
    if "data.pkl" not in found:
        raise PickleError("is a zip archive, but not torch.save's: it has no data.pkl")
    if "byteorder" in found and file.read(found["byteorder"].data.offset, min(found["byteorder"].data.length, 9)) != (
        b"little"
    ):
        raise PickleError("is not little-endian")
    where = found["data.pkl"].data
    if where.length > MOST_PICKLE:
        raise PickleError(f"has a data.pkl of {where.length:,} bytes; those of training states are far smaller")
    interpreter = Interpreter(
        file,
        where.offset,
        where.offset + where.length,
        persistent=_Storages(found, kinds),
        budget=Budget(),
        protocols=(2,),
        **allowed,
    )
    value = interpreter.run()
    if interpreter.position != where.offset + where.length:
        raise PickleError("has a data.pkl with something behind its end")
    return value


class _Storages:
    """What persistent ids stand for: each storage once, as torch writes parameters that are of no other tensor."""

    def __init__(self, found: Mapping[str, Member], kinds: Mapping[Global, str]):
        self._members, self._kinds = found, kinds
        self._used: set[str] = set()

    def __call__(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise PickleError("a persistent id is no storage")
        _, kind, key, location, numel = pid
        if not isinstance(kind, Global) or kind not in self._kinds:
            raise PickleError("a storage is of no known type")
        if not isinstance(key, str) or not KEY.fullmatch(key) or not is_count(numel):
            raise PickleError("a storage is described in an unknown way")
        if not isinstance(location, str) or not LOCATION.fullmatch(location):
            raise PickleError(f"a storage was on the device {brief(location)}, which keeps no values or is unknown")
        if key in self._used:
            raise PickleError(f"the storage data/{key} is used twice")
        self._used.add(key)
        member, dtype = self._members.get(f"data/{key}"), self._kinds[kind]
        if member is None:
            raise PickleError(f"the storage data/{key} is missing")
        if member.data.length != numel * size_of(dtype):
            raise PickleError(
                f"the storage data/{key} should hold {numel} elements of {dtype} and holds {member.data.length} bytes"
            )
        return Storage(dtype, numel, member.data, member.crc)
