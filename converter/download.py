"""Downloads that survive the networks people have: resumed after any break, hashed as they come, whole or not at all.

Correct without any lock: a part file holds one version of an object (URL, strong ETag, length), is only ever extended,
and always with the bytes that belong there, so that two processes that extend it at once write the same. The lease
around a download only keeps them from fetching everything twice.
"""

import contextlib
import hashlib
import http.client
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from filelock import SoftFileLease, Timeout
from tqdm import tqdm

from converter.cache import Cache, CacheError, Entry, file_name, key_of, public_url, read_json, write_json
from converter.errors import ConverterError
from jax_edm2 import __version__
from jax_edm2.files import scratch

CHUNK = 2**20
CONNECT, STALL = 10.0, 20.0  # seconds without a connection, without a byte
RETRIES = 6  # attempts in a row that bring nothing
BACKOFF, LONGEST_WAIT = 0.5, 30.0  # seconds: doubled after every attempt that brought nothing
REDIRECTS = 10
LARGEST = 8 * 2**30  # bytes; XXL in float32 has 6.1e9: for servers that never end
SPARE = 16 * 2**20  # bytes of disk left free
LEASE = 20.0  # seconds after which a process that shows no sign of life is no longer waited for

TRANSIENT = (408, 425, 429)  # and everything from 500 up
Check = Callable[[Path], object]


class DownloadError(ConverterError):
    """A file that cannot be fetched. The message begins with its URL."""


class _Again(Exception):  # noqa: N818
    """An attempt that broke off, and may be repeated."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait  # seconds that the server asks for


def fetch(
    url: str, cache: Cache, *, sha256: str | None = None, offline: bool = False, check: Check = lambda path: None
) -> Path:
    """The path of a URL's file in the cache, fetched if need be.

    sha256: what the file must have. check: raises ConverterError where a fetched file is not what it should be; it is
    then not kept. The hash of every file is recorded on first use and checked on every later one.
    Raises: DownloadError, CacheError; OSError where the cache cannot be used.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise DownloadError(f"{public_url(url)}: only http and https URLs can be fetched")
    key = key_of(url)
    if entry := cache.find(url):
        entry.check(sha256)
        for path in cache.folder.glob(f"{key}.*"):  # of processes that were killed in the last moment
            if path.name != f"{key}.json":
                with contextlib.suppress(OSError):
                    path.unlink()
        return entry.path
    if offline:
        raise DownloadError(
            f"{public_url(url)}: is not in the cache ({cache.folder}), and --offline forbids fetching it"
        )
    cache.folder.mkdir(parents=True, exist_ok=True)
    if not os.access(cache.folder, os.W_OK | os.X_OK):
        raise CacheError(f"{cache.folder}: the cache is read-only; choose another with --cache-dir or DNNLIB_CACHE_DIR")
    with _lease(cache.folder / f"{key}.lock"):
        if entry := cache.find(url):  # fetched by whoever had the lease before
            entry.check(sha256)
            return entry.path
        with _Transfer(url, cache.folder, sha256, check) as transfer:
            return transfer.run()


@contextlib.contextmanager
def _lease(path: Path) -> Iterator[None]:
    """Whoever holds it fetches. It ends with its process, or after LEASE seconds without a sign of life."""
    lease = SoftFileLease(path, lease_duration=LEASE, poll_interval=0.1)
    told = not sys.stderr.isatty()
    while True:
        before = _stamp(path)
        try:
            lease.acquire(timeout=2)
            break
        except Timeout:
            if before == _stamp(path) and before is not None and before[0] == 0:
                path.unlink(missing_ok=True)  # of a process that was killed while it made it, which nobody can tell
            elif not told:
                told = True
                print("another process is fetching it; waiting for that", file=sys.stderr)
    try:
        yield
    finally:
        lease.release()


def _stamp(path: Path) -> tuple[int, int] | None:
    """A file's size and time of change."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return None


@dataclass(frozen=True)
class _Part:
    """A file that is being fetched. etag: strong, or None: then it cannot be resumed. total: bytes, where known."""

    path: Path
    etag: str | None
    total: int | None

    @property
    def size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_size
        return 0

    @property
    def resumable(self) -> bool:
        return self.etag is not None and self.total is not None

    def remove(self):
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".json").unlink(missing_ok=True)


class _Session(requests.Session):
    """Follows few redirects, and none from https to http."""

    max_redirects = REDIRECTS

    def get_redirect_target(self, resp):
        target = super().get_redirect_target(resp)
        if target and resp.url.startswith("https:") and urlsplit(target).scheme == "http":
            raise requests.exceptions.InvalidSchema(f"is redirected from https to {public_url(target)}")
        return target


class _Transfer:
    """One download into a cache folder."""

    def __init__(self, url: str, folder: Path, sha256: str | None, check: Check):
        self.url, self.folder, self.sha256, self.check = url, folder, sha256, check
        self.shown = public_url(url)
        self.key = key_of(url)
        self.target = folder / f"{self.key}_{file_name(url)}"
        self.session = _Session()
        self.ranges = True  # does the server keep to what a Range request means?
        self.moved = False  # did this attempt bring anything that stays?
        self.hashed: tuple[Path | None, int, hashlib._Hash] = None, 0, hashlib.sha256()
        self.bar = tqdm(
            unit="B", unit_scale=True, desc=file_name(url), leave=False, disable=not sys.stderr.isatty(), delay=0.5
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()
        self.bar.close()

    def run(self) -> Path:
        failures = 0
        while True:
            if self.target.exists():  # another process, where locks do nothing, was first
                Entry(self.target, None).check(self.sha256)
                return self.target
            try:
                self.moved = False
                return self._attempt()
            except _Again as error:
                failures = 0 if self.moved else failures + 1
                if failures > RETRIES:
                    part = self._part()
                    kept = f"; {part.size:,} bytes are kept, run it again to go on" if part else ""
                    raise DownloadError(f"{self.shown}: {error}, {failures} times in a row{kept}") from None
                wait = BACKOFF * 2 ** (failures - 1) * random.uniform(0.5, 1) if failures else 0.0
                if failures and sys.stderr.isatty():
                    self.bar.write(f"{self.shown}: {error}; trying again", file=sys.stderr)
                time.sleep(min(max(wait, error.wait), LONGEST_WAIT))

    # An attempt

    def _attempt(self) -> Path:
        part = self._part()
        if part is not None and part.size == part.total:  # a process died between the last byte and the renaming
            return self._place(part)
        try:
            with self._get(part) as response:
                part, start = self._accept(response, part)
                self._receive(response, part, start)
            return self._place(part)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, requests.RequestException) as error:
            raise _Again(_reason(error)) from error
        finally:
            if part is not None and not part.resumable:
                part.remove()

    def _part(self) -> _Part | None:
        """What is left of an earlier attempt, and can be resumed."""
        found = []
        for path in self.folder.glob(f"{self.key}.*.part"):
            about = read_json(path.with_suffix(".json"), "etag")
            if about is None or not isinstance(about.get("bytes"), int):
                continue
            part = _Part(path, about["etag"], about["bytes"])
            if part.size > about["bytes"]:  # not our doing
                part.remove()
            else:
                found.append(part)
        return max(found, key=lambda part: part.size, default=None)

    def _get(self, part: _Part | None) -> requests.Response:
        headers = {"Accept-Encoding": "identity", "User-Agent": f"edm2-jax/{__version__}"}
        if part is not None and part.etag is not None and part.size and self.ranges:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": part.etag}
        try:
            return self.session.get(self.url, headers=headers, stream=True, timeout=(CONNECT, STALL))
        except requests.TooManyRedirects:
            raise DownloadError(f"{self.shown}: is redirected more than {REDIRECTS} times") from None
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"{self.shown}: the connection is not secure ({_reason(error)})") from None
        except ValueError as error:  # requests' InvalidURL, InvalidSchema and the like
            raise DownloadError(f"{self.shown}: {_reason(error)}") from None

    def _accept(self, response: requests.Response, part: _Part | None) -> tuple[_Part, int]:
        """The part that a response's body belongs to, and the byte of the file that it begins with."""
        status, headers = response.status_code, response.headers
        if status in TRANSIENT or status >= 500:
            after = headers.get("Retry-After", "")
            raise _Again(f"the server answers {status} {response.reason}", float(after) if after.isdecimal() else 0.0)
        if status == 416 and part is not None:
            part.remove()
            raise _Again("the server has another version of the file than was being fetched")
        if status not in (200, 206):
            hint = {401: "it wants a login", 403: "it wants a login", 404: "is the name right?"}.get(status)
            raise DownloadError(
                f"{self.shown}: the server answers {status} {response.reason}" + (f" ({hint})" if hint else "")
            )
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise DownloadError(f"{self.shown}: the server sends it compressed ({headers['Content-Encoding']}) unasked")
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            raise DownloadError(f"{self.shown}: is a web page (a login, or an error?), not a file")
        length = headers.get("Content-Length", "")
        count = int(length) if length.isdecimal() else None
        etag = headers.get("ETag", "")
        strong = etag if etag.startswith('"') else None
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
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range.strip())
        first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
        sound = part is not None and first == part.size and total == part.total and last == total - 1
        if not sound or part is None or count not in (None, last - first + 1) or etag not in (None, part.etag):
            self.ranges = False
            raise _Again(f"the server answers a Range request with Content-Range {content_range!a:.60}")
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

    def _receive(self, response: requests.Response, part: _Part, start: int):
        """Append a response's body, which begins at byte `start` of the file."""
        here, sha = self._hash_of(part)
        position, total = start, part.total
        self.bar.reset(total)
        self.bar.initial = self.bar.n = here  # so that the rate is that of this attempt
        read = response.raw.read1
        with open(os.open(part.path, os.O_RDWR | os.O_CREAT, 0o666), "rb+", buffering=0) as file:
            while total is None or position < total:
                data = read(CHUNK, decode_content=False)
                if not data:
                    break
                if total is not None:
                    data = data[: total - position]
                position += len(data)
                if position > LARGEST:
                    raise DownloadError(f"{self.shown}: does not end within {LARGEST:,} bytes")
                new = data[max(here - position + len(data), 0) :]  # what is not here already
                if new:
                    self._write(file.fileno(), new, here)
                    sha.update(new)
                    here += len(new)
                    self.hashed = part.path, here, sha
                    self.moved = part.resumable
                    self.bar.update(len(new))
        if total is not None and position < total:
            raise _Again(f"the connection ends after {position:,} of {total:,} bytes")
        if total is None and response.raw.length_remaining:
            raise _Again(f"the connection ends after {position:,} bytes, in the middle")

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

    def _hash_of(self, part: _Part) -> "tuple[int, hashlib._Hash]":
        """How many bytes of a part are here, and their running sha256."""
        path, count, sha = self.hashed
        size = part.size
        if path != part.path or count != size:
            sha, count = hashlib.sha256(), 0
            with contextlib.suppress(FileNotFoundError), open(part.path, "rb") as file:
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
            raise _Again("what was fetched was removed meanwhile")
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
            with open(part.path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part.path, self.target)
        except FileNotFoundError:
            raise _Again("what was fetched was removed meanwhile") from None
        part.path.with_suffix(".json").unlink(missing_ok=True)
        return self.target


def _reason(error: BaseException) -> str:
    """An error of requests or urllib3, which wrap each other, in a few words."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args[:1] or [None])[0], BaseException):
        error = inner
    text = re.sub(r"^<.*?>: |\(Caused by .*|^\w+\(.*?\): ", "", " ".join(str(error).split()))
    return f"{text:.200}" or type(error).__name__
