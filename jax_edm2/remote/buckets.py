"""Buckets, s3:// and gs://, by obstore."""

import contextlib
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from jax_edm2.messages import one_line
from jax_edm2.remote import files
from jax_edm2.remote.files import RETRIES, SLOWEST, NotThereError, RemoteFile
from jax_edm2.remote.urls import LOGIN, bucket_parts
from jax_edm2.tensors import CheckpointError

_NOT_THERE = "there is no such object, or no such bucket; is the name right?"
_CHANGED = "was changed while it was read; read it again"


class Object(RemoteFile):
    """An object in a bucket, as obstore reads it."""

    def __init__(self, url: str):
        self.url = url
        self._store, self._key = _bucket(url)
        with _explained(url):
            about = _obstore().head(self._store, self._key)
        self.size, etag = about["size"], about["e_tag"]
        if not etag:
            raise CheckpointError(f"{url}: the store gives it no ETag, so nobody could tell if it changed meanwhile")
        self.version = etag

    def read(self, first: int, last: int) -> Any:
        if first == last:
            return b""
        with _explained(self.url):
            found = _obstore().get(self._store, self._key, options={"range": (first, last), "if_match": self.version})
            about, data = found.meta, found.bytes()
        if (about["e_tag"], about["size"]) != (self.version, self.size):  # from a store that knows no If-Match
            raise CheckpointError(f"{self.url}: {_CHANGED}")
        return data


def put(url: str, path: Path):
    """A file becomes an object, in place of what has its name. Raises: CheckpointError."""
    store, key = _bucket(url)
    with _explained(url):
        _obstore().put(store, key, path)


def try_writing(url: str):
    """An object of no bytes, which is taken away again. Raises: CheckpointError."""
    store, key = _bucket(url)
    with _explained(url):
        _obstore().put(store, key, b"")
        _obstore().delete(store, key)


def listing(url: str) -> dict[str, str]:
    """URLs, by their names, of what is in a bucket or folder, without the folders in it. Raises: CheckpointError."""
    store, prefix = _bucket(url, folder=True)
    with _explained(url):
        found = _obstore().list_with_delimiter(store, f"{prefix}/" if prefix else None)["objects"]
    scheme, bucket, _ = bucket_parts(url, folder=True)
    return {each["path"].rpartition("/")[2]: f"{scheme}://{bucket}/{each['path']}" for each in found}


def _bucket(url: str, *, folder: bool = False) -> tuple[Any, str]:
    """A store, and the name of an object or folder in it. Raises: CheckpointError."""
    _obstore()
    scheme, bucket, key = bucket_parts(url, folder=folder)
    from obstore.store import from_url

    client = {"allow_http": True, "timeout": timedelta(seconds=SLOWEST)}
    backoff = {"init_backoff": timedelta(seconds=files.WAIT), "max_backoff": timedelta(seconds=10), "base": 2}
    retry = {"max_retries": RETRIES, "backoff": backoff, "retry_timeout": timedelta(seconds=SLOWEST)}
    with _explained(url):
        return from_url(f"{scheme}://{bucket}", client_options=client, retry_config=retry), key  # type: ignore


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise CheckpointError("s3:// and gs:// need obstore: pip install 'edm2-jax[remote]'") from None
    return obstore


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """obstore's errors, whose texts have many lines, in our words."""
    from obstore import exceptions

    login = LOGIN[url[:2]]
    refused = f"the store refuses it to who you are; {login}"
    try:
        yield
    except FileNotFoundError:
        raise NotThereError(f"{url}: {_NOT_THERE}") from None
    except exceptions.PreconditionError:
        raise CheckpointError(f"{url}: {_CHANGED}") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise CheckpointError(f"{url}: {refused}") from None
    except exceptions.BaseError as error:
        line = str(error).partition("\n")[0]
        if "404 Not Found" in line:  # of a listing
            raise NotThereError(f"{url}: {_NOT_THERE}") from None
        if re.search("(401|403) [UF]", line):  # likewise
            raise CheckpointError(f"{url}: {refused}") from None
        if re.search(r"//169\.254\.|/latest/|/computeMetadata/", line):  # where credentials are looked for last
            raise CheckpointError(f"{url}: there are no credentials; {login}") from None
        line = re.sub(r"\?\S*", "", line)  # what is signed
        raise CheckpointError(f"{url}: the store cannot be read or written ({one_line(line):.300})") from None
