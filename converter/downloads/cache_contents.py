"""What the cache of downloads holds: looked at, held to its records, and removed."""

import dataclasses
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache import Cache, DamagedError, Entry, read_part
from .cache_files import CacheError, check_name
from .urls import file_name


@dataclass(frozen=True)
class CachedFile:
    """A complete file. sha256, url: as recorded. damage: what is wrong with it, or with its record."""

    path: str
    name: str
    bytes: int
    sha256: str | None
    url: str | None
    damage: str | None


@dataclass(frozen=True)
class CachedPart:
    """A file that was fetched in part. total: the bytes that it should have."""

    path: str
    name: str
    bytes: int
    total: int | None


@dataclass(frozen=True)
class Contents:
    """All that a cache holds. Files of the caches beside it, NVlabs' own for one, are among them."""

    folder: Path
    files: list[CachedFile]
    parts: list[CachedPart]

    @property
    def bytes(self) -> int:
        """Of the complete files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def contents(cache: Cache) -> Contents:
    """Raises: CacheError for unsafe folders."""
    return Contents(cache.folder, [_file(entry) for entry in cache.entries()], [_part(path) for path in cache.parts()])


def _file(entry: Entry) -> CachedFile:
    record = entry.record or {}
    size = os.lstat(entry.path).st_size
    return CachedFile(str(entry.path), entry.name, size, record.get("sha256"), record.get("url"), entry.damage)


def _part(path: Path) -> CachedPart:
    try:
        about = read_part(path.with_suffix(".json")) or {}
    except DamagedError:  # it is of no use, and begun again
        about = {}
    name = file_name(about["url"]) if about.get("url") else path.name
    return CachedPart(str(path), name, os.lstat(path).st_size, about.get("bytes"))


@dataclass(frozen=True)
class Checked:
    """A file beside its record. sha256: as computed now. error: what is wrong; None where nothing is."""

    entry: Entry
    sha256: str | None
    error: CacheError | None = None


def check(cache: Cache) -> Iterator[Checked]:
    """Every complete file's sha256, held to what was recorded; recorded where nothing was. Raises: CacheError."""
    for entry in cache.entries():
        try:
            yield Checked(entry, entry.check())
        except CacheError as error:
            yield Checked(entry, None, error)


@dataclass(frozen=True)
class Cleared:
    """How much was removed. bytes: with records."""

    files: int
    parts: int
    bytes: int


def clear(cache: Cache, names: Collection[str] | None = None) -> Cleared:
    """Remove files by name, and what is there of them in part; None is all that edm2-convert fetched or used.

    Raises: CacheError, also for a name that is not there.
    """
    entries = [entry for entry in cache.entries() if _is_meant(entry, names)]
    parts = [path for path in cache.parts() if names is None or _part(path).name in names]
    missing = set(names or ()) - {entry.name for entry in entries} - {_part(path).name for path in parts}
    if missing:
        raise CacheError(
            f"{cache.folder}: holds no {sorted(missing)[0]}; `edm2-convert cache list` shows what it holds"
        )
    size = 0
    files = [path for entry in entries for path in (entry.path, entry.record_path)]
    files += [each for part in parts for each in (part, part.with_suffix(".json"))]
    for path in files:
        if check_name(path):
            size += path.lstat().st_size
            path.unlink()
    return Cleared(len(entries), len(parts), size)


def _is_meant(entry: Entry, names: Collection[str] | None) -> bool:
    return bool(entry.record or entry.damage) if names is None else entry.name in names
