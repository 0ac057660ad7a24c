"""Downloads that survive the networks people have: resumed after any break, hashed as they come, whole or not at all.

Correct without any lock: a part file holds one version of an object (URL, strong ETag, length), is only ever extended,
and always with the bytes that belong there, so that two processes that extend it at once write the same. The lease
around a download only keeps them from fetching everything twice.
"""

import contextlib
import hashlib
import http
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from jax_edm2 import __version__
from jax_edm2.files import scratch

from ..bars import Bar
from ..errors import ConverterError
from .cache import LARGEST, Cache, DamagedError, key_of, read_part, strong_etag, write_json
from .cache_files import CacheError, check_name, make_folder, open_file
from .lease import lease
from .request import Again, Refused, opened
from .urls import URL, URLError, file_name, parse, public_url
from .watchdog import SPEED, TIMEOUT, Watchdog

CHUNK = 2**20
RETRIES = 6  # attempts in a row that bring next to nothing
PATIENCE, PATIENT = 600.0, 30  # seconds, or time-outs if those are more, that a whole download may be behind SPEED
BACKOFF, LONGEST_WAIT = 0.5, 30.0  # seconds: doubled after every attempt that brought next to nothing
SPARE = 16 * 2**20  # bytes of disk left free

TRANSIENT = (408, 425, 429)  # and everything from 500 up
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
Check = Callable[[Path], object]


class DownloadError(ConverterError):
    """A file that cannot be fetched. The message begins with its URL."""


def fetch(
    url: str,
    cache: Cache,
    *,
    sha256: str | None = None,
    offline: bool = False,
    timeout: float = TIMEOUT,
    check: Check = lambda path: None,
) -> Path:
    """The path of a URL's file in the cache, fetched if need be.

    sha256: what the file must have. timeout: the longest silence of a server, in seconds; `Watchdog` has the limits
    that follow from it. check: raises ConverterError where a fetched file is not what it should be; it is then not
    kept. The hash of every file is recorded on first use and checked on every later one.
    Raises: DownloadError, CacheError; OSError where the cache cannot be used.
    """
    try:
        parsed = parse(url)
    except URLError as error:
        raise DownloadError(f"{public_url(url)}: {error}") from None
    key = key_of(url)
    if entry := cache.find(url):
        entry.check(sha256)
        for path in cache.folder.glob(f"{key}.*"):  # of processes that were killed in the last moment
            if path.name != f"{key}.json":
                with contextlib.suppress(OSError):
                    path.unlink()
        return entry.path
    if offline:
        raise DownloadError(f"{parsed.shown}: is not in the cache ({cache.folder}), and --offline forbids fetching it")
    make_folder(cache.folder)
    if not os.access(cache.folder, os.W_OK | os.X_OK):
        raise CacheError(f"{cache.folder}: the cache is read-only; choose another with --cache-dir or DNNLIB_CACHE_DIR")
    with lease(cache.folder / f"{key}.lock"):
        if entry := cache.find(url):  # fetched by whoever had the lease before
            entry.check(sha256)
            return entry.path
        with _Transfer(url, parsed, cache.folder, sha256, timeout, check) as transfer:
            return transfer.run()


@dataclass(frozen=True)
class _Part:
    """A file that is being fetched. etag: strong, or None: then it cannot be resumed. total: bytes, where known."""

    path: Path
    etag: str | None
    total: int | None

    @property
    def size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.path.lstat().st_size
        return 0

    @property
    def resumable(self) -> bool:
        return self.etag is not None and self.total is not None

    def remove(self):
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".json").unlink(missing_ok=True)


class _Transfer:
    """One download into a cache folder."""

    def __init__(self, url: str, parsed: URL, folder: Path, sha256: str | None, timeout: float, check: Check):
        self.url, self.parsed, self.folder, self.sha256, self.check = url, parsed, folder, sha256, check
        self.timeout = timeout
        self.shown = parsed.shown
        self.key = key_of(url)
        self.target = folder / f"{self.key}_{file_name(url)}"
        self.ranges = True  # does the server keep to what a Range request means?
        self.received = self.brought = 0  # bytes, of this attempt; those of them that are new, and stay
        self.hashed: tuple[Path | None, int, Any] = None, 0, hashlib.sha256()
        self.bar = Bar(desc=file_name(url), unit="B", unit_scale=True, delay=0.5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def run(self) -> Path:
        failures, behind, last = 0, 0.0, time.monotonic()
        while True:
            if check_name(self.target):  # another process, where locks do nothing, was first
                if entry := Cache(self.folder).find(self.url):
                    entry.check(self.sha256)
                return self.target
            try:
                self.received = self.brought = 0
                return self._attempt()
            except Refused as error:
                raise DownloadError(f"{self.shown}: {error}") from None
            except Again as error:
                # A byte for every attempt, or for every minute of attempts and waits, is no progress.
                failures = 0 if self.brought >= SPEED else failures + 1
                now = time.monotonic()
                behind, last = max(behind + now - last - self.received / SPEED, 0.0), now
                if failures > RETRIES or behind > max(PATIENCE, PATIENT * self.timeout):
                    raise DownloadError(f"{self.shown}: {error}{self._given_up(failures)}") from None
                wait = BACKOFF * 2 ** (failures - 1) * random.uniform(0.5, 1) if failures else 0.0
                if failures:
                    self.bar.write(f"{self.shown}: {error}; trying again", file=sys.stderr)
                time.sleep(min(max(wait, error.wait), LONGEST_WAIT))

    def _given_up(self, failures: int) -> str:
        """How it came to that, and what is left."""
        part = self._part()
        kept = f"; {part.size:,} bytes are kept, run it again to go on" if part and part.size else ""
        if failures > RETRIES:
            return f", {failures} times in a row{kept}"
        return f"; all attempts together bring less than {SPEED:,} bytes a second{kept}"

    # An attempt

    def _attempt(self) -> Path:
        part = self._part()
        if part is not None and part.size == part.total:  # a process died between the last byte and the renaming
            return self._place(part)
        if part is not None:
            self._hash_of(part)  # no server waits for that
        try:
            with opened(self.parsed, self._headers(part), self.timeout) as (response, watchdog):
                part, start = self._accept(response, part)
                self._receive(response, watchdog, part, start)
            return self._place(part)
        finally:
            if part is not None and not part.resumable:
                part.remove()

    def _part(self) -> _Part | None:
        """What is left of an earlier attempt, and can be resumed."""
        found = []
        for path in self.folder.glob(f"{self.key}.*.part"):
            check_name(path)
            try:
                about = read_part(path.with_suffix(".json"))
            except DamagedError:
                _Part(path, None, None).remove()
                continue
            if about is None:
                continue
            part = _Part(path, about["etag"], about["bytes"])
            if part.size > about["bytes"] or path != self._path(part.etag, part.total):  # not our doing
                part.remove()
            else:
                found.append(part)
        return max(found, key=lambda part: part.size, default=None)

    def _headers(self, part: _Part | None) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"edm2-jax/{__version__}"}
        if part is not None and part.etag is not None and part.size and self.ranges:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": part.etag}
        return headers

    def _accept(self, response: requests.Response, part: _Part | None) -> tuple[_Part, int]:
        """The part that a response's body belongs to, and the byte of the file that it begins with."""
        status, headers = response.status_code, response.headers
        answers = f"the server answers {status} {_PHRASES.get(status, '')}".rstrip()
        if status in TRANSIENT or status >= 500:
            raise Again(answers, _number(headers.get("Retry-After")) or 0)
        if status == 416 and part is not None:
            part.remove()
            raise Again("the server has another version of the file than was being fetched")
        if status not in (200, 206):
            hint = {401: "it wants a login", 403: "it wants a login", 404: "is the name right?"}.get(status)
            raise Refused(answers + (f" ({hint})" if hint else ""))
        if (encoding := headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
            known = f" ({encoding})" if encoding in ("br", "compress", "deflate", "gzip", "zstd") else ""
            raise Refused(f"the server sends it compressed{known} unasked")
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            raise Refused("is a web page (a login, or an error?), not a file")
        count = None
        if "Content-Length" in headers and not response.raw.chunked:  # of chunks, it says nothing
            count = _number(headers["Content-Length"])
            if count is None:
                raise Refused("the server sends a Content-Length that is no number")
            if count > LARGEST:
                raise Refused(f"the server says that it has {count:,} bytes; {LARGEST:,} are the most")
        strong = strong_etag(headers.get("ETag"))
        if status == 206:
            return self._accept_range(headers.get("Content-Range", ""), count, strong, part)
        new = _Part(self._path(strong, count), strong, count)
        if part is not None and part.path == new.path:  # the server knows no ranges: what is here comes once more
            return part, 0
        if part is not None:
            part.remove()
        self._check_space(count or 0)
        if new.resumable:
            about = {"url": self.shown, "etag": strong, "bytes": count}
            write_json(new.path.with_suffix(".json"), about)
        return new, 0

    def _accept_range(self, content_range: str, count: int | None, etag: str | None, part: _Part | None):
        match = _RANGE.fullmatch(content_range.strip())
        first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
        sound = part is not None and first == part.size and total == part.total and last == total - 1
        if not sound or part is None or count not in (None, last - first + 1) or etag not in (None, part.etag):
            self.ranges = False
            raise Again("the server answers a Range request with a Content-Range that does not fit")
        self._check_space(total - first)
        return part, first

    def _path(self, etag: str | None, total: int | None) -> Path:
        """Of a part file: the same for the same version of the object, and never the same where that is unknown."""
        if etag is None or total is None:
            return scratch(self.folder / self.key)
        return self.folder / f"{self.key}.{hashlib.sha256(f'{etag} {total}'.encode()).hexdigest()[:16]}.part"

    def _check_space(self, needed: int):
        free = shutil.disk_usage(self.folder).free
        if needed + SPARE > free:
            raise DownloadError(
                f"{self.shown}: needs {needed / 1e6:,.0f} MB in {self.folder}, which has {free / 1e6:,.0f} MB free; "
                "make room, or choose another folder with --cache-dir or DNNLIB_CACHE_DIR"
            )

    def _receive(self, response: requests.Response, watchdog: Watchdog, part: _Part, start: int):
        """Append a response's body, which begins at byte `start` of the file."""
        here, sha = self._hash_of(part)
        position, total = start, part.total
        self.bar.reset(total)
        self.bar.initial = self.bar.n = here  # so that the rate is that of this attempt
        read = response.raw.read1
        watchdog.read()
        with open(open_file(part.path, os.O_RDWR | os.O_CREAT), "rb+", buffering=0) as file:
            while total is None or position < total:
                data = read(CHUNK, decode_content=False)
                if not data:
                    break
                self.received = watchdog.received = self.received + len(data)
                if total is not None:
                    data = data[: total - position]
                position += len(data)
                if position > LARGEST:
                    raise Refused(f"does not end within {LARGEST:,} bytes")
                new = data[max(here - position + len(data), 0) :]  # what is not here already
                if new:
                    self._write(file.fileno(), new, here)
                    sha.update(new)
                    here += len(new)
                    self.hashed = part.path, here, sha
                    self.brought += len(new) if part.resumable else 0
                    self.bar.update(len(new))
        if total is not None and position < total:
            raise Again(f"the connection ends after {position:,} of {total:,} bytes")
        if total is None and response.raw.length_remaining:
            raise Again(f"the connection ends after {position:,} bytes, in the middle")

    def _write(self, descriptor: int, data: bytes, offset: int):
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise DownloadError(
                f"{self.folder}: {error.strerror}; {offset:,} bytes of {self.shown} are kept: make room, run it again"
            ) from None

    def _hash_of(self, part: _Part) -> tuple[int, Any]:
        """How many bytes of a part are here, and their running sha256."""
        path, count, sha = self.hashed
        size = part.size
        if path != part.path or count != size:
            sha, count = hashlib.sha256(), 0
            with contextlib.suppress(FileNotFoundError), open(open_file(part.path), "rb") as file:
                while count < size and (data := file.read(min(CHUNK, size - count))):
                    sha.update(data)
                    count += len(data)
            self.hashed = part.path, count, sha
        return count, sha

    # The end

    def _place(self, part: _Part) -> Path:
        """Move a complete part to its final name, if it is what it should be."""
        count, sha = self._hash_of(part)
        if part.total not in (None, count):
            raise Again("what was fetched was removed meanwhile")
        found = sha.hexdigest()
        if self.sha256 is not None and found != self.sha256.lower():
            part.remove()
            raise DownloadError(f"{self.shown}: its sha256 is {found}, not {self.sha256.lower()} as demanded; not kept")
        try:
            self.check(part.path)
        except ConverterError as error:
            part.remove()
            why = str(error).removeprefix(f"{part.path}: ")
            raise DownloadError(f"{self.shown}: what the server sent was not kept: {why}") from None
        record = {"url": self.shown, "sha256": found, "bytes": count, "etag": part.etag}
        write_json(self.folder / f"{self.key}.json", record)
        try:
            with open(open_file(part.path), "rb") as file:
                os.fsync(file.fileno())
                hashed = os.fstat(file.fileno())
            check_name(self.target)
            # Where locks do nothing, another process may have moved it, and a third begun it anew under its name.
            own = part.path.with_suffix(f".{os.getpid()}")
            os.replace(part.path, own)
            if (own.stat().st_ino, own.stat().st_size) != (hashed.st_ino, count):
                own.unlink()
                raise Again("what was fetched was replaced meanwhile")
            os.replace(own, self.target)
        except FileNotFoundError:
            raise Again("what was fetched was removed meanwhile") from None
        part.path.with_suffix(".json").unlink(missing_ok=True)
        return self.target


def _number(text: str | None) -> int | None:
    """A header's number, and no other text that Python would take for one."""
    return int(text) if text is not None and _NUMBER.fullmatch(text.strip()) else None
