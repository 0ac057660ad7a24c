"""Files of stores (s3://, gs://, hf://) in the cache: one for every version of an object that was used."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jax_edm2.files import whole_or_nothing
from jax_edm2.remote import RemoteFile, file_name, open_remote, pinned
from jax_edm2.tensors import CheckpointError

from ..bars import Bar
from ..errors import ConverterError
from .cache import Cache, Entry, key_of, write_json
from .cache import sha256 as file_sha256
from .cache_files import make_folder, open_file
from .download import SPARE, DownloadError
from .lease import lease


def fetch_stored(
    url: str, cache: Cache, *, sha256: str | None = None, offline: bool = False, check: Callable[[Path], object]
) -> Path:
    """The path in the cache of what a store has now under a URL, fetched if need be.

    sha256: what the file must have. offline: no store is asked, and the version is taken that was fetched last.
    check: raises where a fetched file is not what it should be; it is then not kept. As with downloads, the hash of
    every file is recorded, and held to that on every later use.
    Raises: CheckpointError for what a store refuses, DownloadError, CacheError; OSError where the cache cannot be used.
    """
    version, file = pinned(url), None
    if version is None and offline:
        entry = _youngest(url, cache)
    else:
        if version is None:
            file = open_remote(url)
            version = file.version
        key = key_of(f"{url} {version}")
        entry = next(cache.entries(key), None)
    if entry is not None:
        entry.check(sha256)
        return entry.path
    if offline:
        raise DownloadError(f"{url}: is not in the cache ({cache.folder}), and --offline forbids fetching it")
    make_folder(cache.folder)
    with lease(cache.folder / f"{key}.lock"):
        if entry := next(cache.entries(key), None):  # fetched by whoever had the lease before
            entry.check(sha256)
            return entry.path
        target = cache.folder / f"{key}_{file_name(url)}"
        with whole_or_nothing(target, overwrite=True) as temporary:
            _receive(file or open_remote(url), temporary)
            found = file_sha256(temporary)
            if sha256 is not None and found != sha256.lower():
                raise DownloadError(f"{url}: its sha256 is {found}, not {sha256.lower()} as demanded; not kept")
            try:
                check(temporary)
            except (ConverterError, CheckpointError) as error:
                why = str(error).removeprefix(f"{temporary}: ")
                raise DownloadError(f"{url}: what the store sent was not kept: {why}") from None
            record = {"url": url, "sha256": found, "bytes": temporary.stat().st_size, "etag": version}
            write_json(cache.folder / f"{key}.json", record)
    return target


def _youngest(url: str, cache: Cache) -> Entry | None:
    entries = [entry for entry in cache.entries() if entry.record is not None and entry.record.get("url") == url]
    return max(entries, key=lambda entry: entry.path.stat().st_mtime_ns, default=None)


def _receive(file: RemoteFile, path: Path):
    """All of a file, by several ranges at once."""
    free = shutil.disk_usage(path.parent).free
    if file.size + SPARE > free:
        raise DownloadError(
            f"{file.url}: needs {file.size / 1e6:,.0f} MB in {path.parent}, which has {free / 1e6:,.0f} MB free; "
            "make room, or choose another folder with --cache-dir or DNNLIB_CACHE_DIR"
        )
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    bar = Bar(desc=file_name(file.url), total=file.size, unit="B", unit_scale=True, delay=0.5)
    try:

        def fetch(first: int) -> int:
            view = memoryview(bytearray(min(file.piece, file.size - first)))
            file.read_into(view, first)
            done = 0
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], first + done)
            return done

        with ThreadPoolExecutor(file.threads) as pool:
            try:
                for count in pool.map(fetch, range(0, file.size, file.piece)):
                    bar.update(count)
            finally:
                pool.shutdown(cancel_futures=True)
        os.fsync(descriptor)
    finally:
        bar.close()
        os.close(descriptor)
