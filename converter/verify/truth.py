"""The truth file: what PyTorch computed in float64, and how far PyTorch itself is from it in the precision asked for.

A zip archive of .npy members (numpy.load reads it like any .npz; see `converter.verify.archive`) and one JSON member,
`truth.json`, written last.

    CASE/SCOPE/OPERATION        float64, a tap; CASE is seed0, seed1, ...
    CASE/SCOPE/clip.amplified   the clip of what was multiplied by a power of two until it had something to clip
    CASE unlabelled/unet.embedding/OPERATION   float64, taps of the embedding with class_labels=None
    trajectory                  float64 [steps + 1, 1, C, H, W], the states of the Heun sampler
    sample                      float32 [1, C, H, W], their end in PyTorch in the precision that is judged; to be shown
    loss                        float64, the mean EDM2 loss
    derivative/CASE             float64 [N, C, H, W], see `torch_side.derivative`
    training/loss, training/gradient_norm, training/rate   float64 [updates]; training/images
    training/PART/NAME          float32, of every parameter after it (net), its moments and averages
    gradient/NAME, step/NAME, ema/NAME   float32 (rounded once), of every parameter; gradient/input besides

    truth.json  {"schema": "edm2-truth/3", "sha256": of this text with 64 zeros here,
                 "members": {KEY: [dtype, shape, sha256 of the values]}, "facts": see `converter.verify.facts`}

The table of members is the archive's whole contents, and every array is held to its digest whenever it is read.
"""

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jax_edm2 import strict_json
from jax_edm2.config import EDM2Config
from jax_edm2.messages import brief

from ..errors import ConverterError
from . import shapes
from .archive import (
    MOST_MEMBERS,
    ArchiveError,
    beginning,
    npy_header,
    read_member,
    stored_members,
)
from .cases import Plan
from .facts import Facts, check
from .facts_values import FactsError

SCHEMA = "edm2-truth/3"
MEMBER = "truth.json"
MOST_BYTES = 24 * 2**20  # of truth.json; S with 32 seeds has 5.6 MB and 240,000 values
MOST_VALUES = 1_000_000
PROJECTIONS = 8
DTYPES = {"<f8": 8, "<f4": 4}  # and their bytes
AGAIN = "make it again with --save-truth"
_UNSIGNED = "0" * 64
_BEGINNING = re.compile(rb'\{"schema": "([\w./-]{1,40})"(?:, "sha256": "([0-9a-f]{64})", )?')
_LONGEST = 200  # of what _BEGINNING matches


class TruthError(ConverterError):
    """A truth file that is not one, or does not fit what it is used for."""


class TruthWriter:
    """Writes a truth file, member by member, and reads back what it wrote. Use it in a `with` statement."""

    def __init__(self, path: Path):
        self._path = path
        self._file = open(path, "x+b")  # noqa: SIM115
        self._zip = zipfile.ZipFile(self._file, "w")  # stored: noise does not compress
        self._members: dict[str, list[Any]] = {}
        self._starts: dict[str, int] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._zip.close()
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def __setitem__(self, key: str, value: np.ndarray):
        if len(self._members) == MOST_MEMBERS - 1:
            raise TruthError(f"a truth file has {MOST_MEMBERS:,} arrays at most: ask for fewer --seeds")
        if key in self._members:
            raise ValueError(f"{key} is written already")
        array = np.asarray(value, order="C")
        dtype, shape = array.dtype.str, array.shape
        flat = array.reshape(-1).view(np.uint8).data
        with self._zip.open(f"{key}.npy", "w", force_zip64=True) as member:
            self._starts[key] = self._file.tell()
            member.write(npy_header(dtype, shape))
            member.write(flat)
        self._members[key] = [dtype, list(shape), hashlib.sha256(flat).hexdigest()]

    def __getitem__(self, key: str) -> np.ndarray:
        dtype, shape, _ = self._members[key]
        return read_member(self._file, self._starts[key], dtype, tuple(shape))  # zipfile finds its place again

    def finish(self, facts: Facts):
        """Write the table of members and the facts. Raises: TruthError for what `Truth` would refuse."""
        record = {"members": self._members, "facts": facts.to_json()}
        text = json.dumps({"schema": SCHEMA, "sha256": _UNSIGNED, **record}, allow_nan=False).encode("ascii")
        text = text.replace(_UNSIGNED.encode(), _digest(text).encode(), 1)
        try:
            _Record(text)
        except (ArchiveError, FactsError) as error:
            raise TruthError(f"{self._path}: would be refused: {error}") from None
        with self._zip.open(MEMBER, "w", force_zip64=True) as member:
            member.write(text)


class Truth:
    """An open truth file. Use it in a `with` statement.

    facts: of truth.json, checked; plan, config and golden are theirs.
    Raises: TruthError, when it is opened and whenever an array is read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = self._open()
        try:
            self._spans, record = _read(self._file)
        except (ArchiveError, FactsError, OSError) as error:
            self._file.close()
            raise TruthError(f"{path}: {error}; {AGAIN}") from None
        except BaseException:
            self._file.close()
            raise
        self._members = record.members
        self.facts = record.facts
        self.plan, self.config, self.golden = self.facts.plan, self.facts.config, self.facts.golden

    @property
    def names(self) -> list[str]:
        """Keys of all arrays."""
        return list(self._members)

    def _open(self) -> BinaryIO:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # to open a pipe would be to wait
                raise TruthError(f"{self.path}: is no file")
            return open(self.path, "rb")
        except FileNotFoundError:
            raise TruthError(f"{self.path}: there is no such file; make it with --save-truth") from None
        except OSError as error:
            raise TruthError(f"{self.path}: {error.strerror}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def keys(self) -> set[str]:
        """Of all arrays."""
        return set(self._members)

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._members:
            raise TruthError(f"{self.path}: has no {key!a:.200}; {AGAIN}")
        dtype, shape, digest = self._members[key]
        try:
            array = read_member(self._file, self._spans[key], dtype, shape)
        except (ArchiveError, OSError) as error:
            raise TruthError(f"{self.path}: {key} {error}; {AGAIN}") from None
        except MemoryError:
            raise TruthError(f"{self.path}: {key} has {list(shape)} values, more than memory has room for") from None
        if hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest() != digest:
            raise TruthError(f"{self.path}: {key} is damaged: its sha256 is not the one recorded; {AGAIN}")
        return array


class _Record:
    """The text of truth.json, checked. Raises: ArchiveError, FactsError."""

    def __init__(self, text: bytes):
        found = _BEGINNING.match(text)
        if not found or found[1].decode() != SCHEMA:
            raise ArchiveError(f"has {f'schema {found[1].decode()!r}' if found else 'no schema'}, not {SCHEMA!r}")
        if not found[2] or found[2].decode() != _digest(text.replace(found[2], _UNSIGNED.encode(), 1)):
            raise ArchiveError(f"is damaged: the sha256 of {MEMBER} is not the one recorded")
        if not text.isascii():  # text in memory takes as many bytes as in the file
            raise ArchiveError(f"has a {MEMBER} with characters that are not ASCII")
        try:
            record = strict_json.loads(text, most_bytes=MOST_BYTES, most_values=MOST_VALUES)
        except strict_json.JSONError as error:
            raise ArchiveError(f"has a {MEMBER} that {error}") from None
        if set(record) != {"schema", "sha256", "members", "facts"}:
            raise ArchiveError(f"has a {MEMBER} of {', '.join(map(brief, list(record)[:9]))}, not of members and facts")
        self.members = _members(record["members"])
        arrays = {key: (dtype, shape) for key, (dtype, shape, _) in self.members.items()}
        self.facts = check(record["facts"], arrays)


def _read(file: BinaryIO) -> tuple[dict[str, int], _Record]:
    """(where every array starts, the record) of a truth file. Raises: ArchiveError, FactsError, OSError."""
    try:
        spans = stored_members(file)
    except ArchiveError:
        found = _BEGINNING.match(beginning(file, MEMBER, _LONGEST))  # it was compressed before
        if found and found[1].decode() != SCHEMA:
            _Record(found[0])
        raise
    if MEMBER not in spans:
        raise ArchiveError(f"is no truth file: it has no {MEMBER}")
    start, size = spans.pop(MEMBER)
    if size > MOST_BYTES:
        raise ArchiveError(f"has a {MEMBER} of {size:,} bytes; {MOST_BYTES:,} are read at most")
    file.seek(start)
    record = _Record(file.read(size))
    if odd := spans.keys() ^ {f"{key}.npy" for key in record.members}:
        name = min(odd)
        raise ArchiveError(f"{'has a member' if name in spans else 'lacks the member'} {name!a:.200} of no place in it")
    for key, (dtype, shape, _) in record.members.items():
        size = len(npy_header(dtype, shape)) + _bytes(dtype, shape)
        if spans[f"{key}.npy"][1] != size:
            raise ArchiveError(f"has a member {key} of {spans[f'{key}.npy'][1]:,} bytes, which should have {size:,}")
    return {key: spans[f"{key}.npy"][0] for key in record.members}, record


def _members(table: Any) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """(dtype, shape, sha256) of every array. Raises: ArchiveError."""
    if not isinstance(table, dict):
        raise ArchiveError(f"has {brief(table)} for a table of members")
    found = {}
    for key, entry in table.items():
        match entry:
            case [str(dtype), [*shape], str(digest)] if (
                dtype in DTYPES
                and len(shape) <= 8
                and all(type(n) is int and 0 <= n < 2**40 for n in shape)
                and re.fullmatch("[0-9a-f]{64}", digest)
            ):
                found[key] = dtype, tuple(shape), digest
            case _:
                raise ArchiveError(f"has no dtype, shape and sha256 for its member {brief(key)}")
    return found


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    count = DTYPES[dtype]
    for n in shape:
        count *= n
    return count


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def check_room(plan: Plan, config: EDM2Config):
    """Refuse what `TruthWriter` would refuse only after hours. Raises: TruthError."""
    each = len(shapes.tap_shapes(config, 1)) + len(shapes.of_a_case(config, 1))
    if "forward" in plan.checks and each * len(plan.seeds) + 3 * len(shapes.trained(config)) > MOST_MEMBERS:
        raise TruthError(f"{len(plan.seeds):,} seeds have more taps than a truth file may hold: ask for fewer --seeds")


def reduced(training: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """What a golden has of what a training gives: of each part, all parameters in the order of their names as one."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, value in training:
        part, _, name = key.rpartition("/")
        if part.count("/"):
            parts.setdefault(part, {})[name] = value
        else:
            yield key, value
    for part, values in parts.items():
        yield part, projection(part, np.concatenate([np.ravel(values[name]) for name in sorted(values)]))


def projection(name: str, value: np.ndarray) -> np.ndarray:
    """The norm of an array and PROJECTIONS random projections of it, float64: enough to see any change of it.

    The directions depend on the array's name and size alone; theirs is numpy's frozen generator.
    """
    flat = np.asarray(value, np.float64).reshape(-1)
    seed = int.from_bytes(hashlib.sha256(f"{name} {flat.size}".encode()).digest()[:4], "little")
    directions = np.random.RandomState(seed).standard_normal((PROJECTIONS, flat.size)) / np.sqrt(PROJECTIONS)
    return np.array([np.linalg.norm(flat), *(directions @ flat)])
