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
from urllib.parse import urlsplit, urlunsplit

from converter.errors import ConverterError
from jax_edm2.files import whole_or_nothing

_KEY = re.compile(r"[0-9a-f]{32}")


class CacheError(ConverterError):
    """A cached file that is not what was recorded of it, or a cache that cannot be used."""


@dataclass(frozen=True)
class Entry:
    """A complete file in the cache. record: what is known of it; None before its first use."""

    path: Path
    record: dict[str, Any] | None

    @property
    def key(self) -> str:
        return self.path.name[:32]

    @property
    def name(self) -> str:
        return self.path.name[33:]

    def check(self, wanted: str | None = None) -> str:
        """The file's sha256, computed now. Recorded on first use. Raises: CacheError if it is not `wanted`, or changed.

        A record that cannot be written, in a cache that is read-only, is done without.
        """
        found = sha256(self.path)
        if self.record is not None and found != self.record["sha256"]:
            raise CacheError(
                f"{self.path}: was altered: its sha256 is {found}, not {self.record['sha256']} as recorded; "
                f"remove it with `edm2-convert cache clear {self.name}` and fetch it again"
            )
        if wanted is not None and found != wanted.lower():
            raise CacheError(f"{self.path}: its sha256 is {found}, not {wanted.lower()} as demanded")
        if self.record is None:
            with contextlib.suppress(OSError):
                write_json(
                    self.path.with_name(f"{self.key}.json"), {"sha256": found, "bytes": self.path.stat().st_size}
                )
        return found


@dataclass(frozen=True)
class Cache:
    """folder: where downloads go. others: folders in which files may lie already, NVlabs' own cache for one."""

    folder: Path
    others: tuple[Path, ...] = ()

    def find(self, url: str) -> Entry | None:
        """The complete file of a URL, fetched by us or by NVlabs' tool."""
        return next(self.entries(key_of(url)), None)

    def entries(self, key: str | None = None) -> Iterator[Entry]:
        """The complete files of the cache, or those of one URL."""
        for folder in (self.folder, *self.others):
            for path in sorted(folder.glob(f"{key or '?' * 32}_*")):
                if _KEY.fullmatch(path.name[:32]) and path.is_file():
                    yield Entry(path, read_json(path.with_name(f"{path.name[:32]}.json"), "sha256"))

    def parts(self) -> Iterator[Path]:
        """Files that have been fetched in part."""
        return (path for path in sorted(self.folder.glob("*.part")) if _KEY.fullmatch(path.name[:32]))


def default_cache() -> Cache:
    """`$DNNLIB_CACHE_DIR/downloads` where that is set, as in NVlabs' code; else the platform's cache folder."""
    if root := os.environ.get("DNNLIB_CACHE_DIR"):
        return Cache(Path(root) / "downloads")
    from platformdirs import user_cache_path

    return Cache(user_cache_path("edm2-jax") / "downloads", (Path.home() / ".cache" / "dnnlib" / "downloads",))


def key_of(url: str) -> str:
    """As in NVlabs' dnnlib.util.open_url."""
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()


def file_name(url: str) -> str:
    """The last part of a URL's path, as a file name that is safe anywhere."""
    last = urlsplit(url).path.rpartition("/")[2]
    return re.sub(r"[^0-9A-Za-z._-]", "_", last)[-128:] or "download"


def public_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def sha256(path: str | os.PathLike) -> str:
    """Of a file. Raises: OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, field: str) -> dict[str, Any] | None:
    """A small JSON object that has `field`; None where there is none, or something else."""
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record.get(field), str | int) else None
    except (OSError, ValueError, AttributeError):
        return None


def write_json(path: Path, record: dict[str, Any]):
    with whole_or_nothing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, sort_keys=True) + "\n", encoding="utf-8")
