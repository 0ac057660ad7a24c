"""The cache of downloads: files under names that NVlabs' own tool finds too, each with a record of its sha256.

<md5 of the URL>_<name>          a complete file
<md5 of the URL>.json            what was recorded of it on first use: {url, sha256, bytes, etag}
<md5 of the URL>.<tag>.part      what has been fetched of one version of a file (`download`)
<md5 of the URL>.<tag>.json      that version: {url, etag, bytes}
<md5 of the URL>.lock            held by the process that is fetching it
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_edm2.files import whole_or_nothing
from jax_edm2.strict_json import JSONError, loads

from .cache_files import CacheError, check_folder, check_name, open_file

LARGEST = 8 * 2**30  # bytes; XXL in float32 has 6.1e9: for servers that never end
MOST_JSON = 2**16  # bytes of a record

_KEY = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r'"[!#-~]{0,256}"')  # a strong one


@dataclass(frozen=True)
class Entry:
    """A complete file in the cache.

    record: what is known of it; None before its first use. damage: what is wrong with the file, or with its record, in
    a line that names it; None where nothing is.
    """

    path: Path
    record: dict[str, Any] | None
    damage: str | None = None

    @property
    def key(self) -> str:
        return self.path.name[:32]

    @property
    def name(self) -> str:
        return self.path.name[33:]

    @property
    def record_path(self) -> Path:
        return self.path.with_name(f"{self.key}.json")

    def check(self, wanted: str | None = None) -> str:
        """The file's sha256, computed now. Recorded on first use. Raises: CacheError if it is not `wanted`, or changed.

        In a cache that is read-only, no record is written.
        """
        if self.damage is not None:
            raise CacheError(self.damage)
        with open(open_file(self.path), "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        if self.record is not None and found != self.record["sha256"]:
            raise CacheError(
                f"{self.path}: was altered: its sha256 is {found}, not {self.record['sha256']} as recorded; "
                f"remove it with `edm2-convert cache clear {self.name}` and fetch it again"
            )
        if wanted is not None and found != wanted.lower():
            raise CacheError(f"{self.path}: its sha256 is {found}, not {wanted.lower()} as demanded")
        if self.record is None:
            with contextlib.suppress(OSError):
                write_json(self.record_path, {"sha256": found, "bytes": size})
        return found


@dataclass(frozen=True)
class Cache:
    """folder: where downloads go. others: folders in which files may lie already, NVlabs' own cache for one."""

    folder: Path
    others: tuple[Path, ...] = ()

    def find(self, url: str) -> Entry | None:
        """The complete file of a URL, fetched by us or by NVlabs' tool. Raises: CacheError."""
        return next(self.entries(key_of(url)), None)

    def entries(self, key: str | None = None) -> Iterator[Entry]:
        """The complete files of the cache, or those of one URL. Raises: CacheError for unsafe folders."""
        for folder in (self.folder, *self.others):
            for i, path in enumerate(self._named(folder, f"{key or '?' * 32}_*")):
                if i == 0:
                    check_folder(folder)
                yield _entry(path)

    def parts(self) -> Iterator[Path]:
        """Files that have been fetched in part. Raises: CacheError for a folder that others may write."""
        for i, path in enumerate(self._named(self.folder, "?" * 32 + ".*.part")):
            if i == 0:
                check_folder(self.folder)
            yield path

    @staticmethod
    def _named(folder: Path, pattern: str) -> Iterator[Path]:
        return (path for path in sorted(folder.glob(pattern)) if _KEY.fullmatch(path.name[:32]))


def _entry(path: Path) -> Entry:
    entry = Entry(path, None)
    try:
        check_name(path)
        return Entry(path, read_record(entry.record_path))
    except DamagedError as error:
        clear = f"`edm2-convert cache clear {entry.name}`"
        return Entry(path, None, f"{error}: nothing tells whether the file was altered; {clear} and fetch it again")
    except CacheError as error:
        return Entry(path, None, str(error))


def cache_in(folder: Path | None = None) -> Cache:
    """The cache in a folder; by default the user's.

    That is `$DNNLIB_CACHE_DIR/downloads` where it is set, as in NVlabs' code; else the platform's cache folder.
    Raises: CacheError where there is no home folder.
    """
    if folder is not None:
        return Cache(folder)
    if root := os.environ.get("DNNLIB_CACHE_DIR"):
        return Cache(Path(root) / "downloads")
    from platformdirs import user_cache_path

    try:
        home = Path.home()
    except RuntimeError:
        raise CacheError("there is no home folder for a cache; choose one with --cache-dir") from None
    return Cache(user_cache_path("edm2-jax") / "downloads", (home / ".cache" / "dnnlib" / "downloads",))


def key_of(url: str) -> str:
    """As in NVlabs' dnnlib.util.open_url."""
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """Of any file. Raises: OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Records


class DamagedError(CacheError):
    """A record that is none."""


def read_record(path: Path) -> dict[str, Any] | None:
    """What was recorded of a complete file: sha256, and perhaps url, bytes, etag. None where nothing was.

    Raises: DamagedError: its file may be altered as well, and must not pass for one that is used for the first time;
    CacheError.
    """
    record = _read_json(path)
    if record is not None and not (_is(_SHA256, record.get("sha256")) and _sound(record)):
        raise DamagedError(f"{path}: is damaged (it is no record of a sha256)")
    return record


def read_part(path: Path) -> dict[str, Any] | None:
    """What was recorded of a file that was fetched in part: etag and bytes, and perhaps url; None where nothing was.

    Raises: DamagedError, CacheError.
    """
    record = _read_json(path)
    if record is not None and not (strong_etag(record.get("etag")) and "bytes" in record and _sound(record)):
        raise DamagedError(f"{path}: is damaged (it is no record of a download)")
    return record


def strong_etag(text: Any) -> str | None:
    """An ETag, if the same one means the same bytes, and it is not absurdly long."""
    return text if _is(_ETAG, text) else None


def write_json(path: Path, record: dict[str, Any]):
    with whole_or_nothing(path, overwrite=True) as temporary:
        text = json.dumps(record, sort_keys=True) + "\n"
        with open(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
            file.write(text)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        with open(open_file(path), "rb") as file:
            record = loads(file.read(MOST_JSON + 1), most_bytes=MOST_JSON, most_values=100)
    except FileNotFoundError:
        return None
    except JSONError as error:
        raise DamagedError(f"{path}: is damaged (it {error})") from None
    if not isinstance(record, dict):
        raise DamagedError(f"{path}: is damaged (it is no JSON object)")
    return record


def _sound(record: dict[str, Any]) -> bool:
    """Are the fields that every record may have what they should be, where they are given?"""
    texts = all(record.get(name) is None or isinstance(record[name], str) for name in ("url", "etag"))
    count = record.get("bytes", 0)
    return texts and type(count) is int and 0 <= count < 2**63


def _is(pattern: re.Pattern, value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
