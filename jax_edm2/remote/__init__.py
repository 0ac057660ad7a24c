"""Files in stores: s3://bucket/name, gs://bucket/name, and hf://owner/repo@revision/name on the Hugging Face hub.

They are read by ranges and written whole, by obstore and by the hub's own client, which also find credentials, ask
again where a connection breaks off, and are imported when a store is first used. All ranges are of one version of the
file: of its ETag, or of the commit that a branch stood for when it was opened.
"""

import contextlib
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from jax_edm2.remote import buckets, hub
from jax_edm2.remote.files import NotThereError, RemoteFile
from jax_edm2.remote.urls import file_name, hub_parts, is_remote, is_stored, pinned

__all__ = [
    "NotThereError", "RemoteFile", "exists", "file_name", "is_remote", "is_stored", "listing", "open_remote", "pinned",
    "put", "try_writing", "uploading",
]  # fmt: skip


def open_remote(url: str) -> RemoteFile:
    """Raises: CheckpointError for what is no such URL, is not there or cannot be read, or for a missing package."""
    return (hub.HubFile if url.startswith("hf://") else buckets.Object)(url)


def exists(url: str) -> bool:
    """Is there such a file? Raises: CheckpointError where that cannot be found out."""
    try:
        open_remote(url)
    except NotThereError:
        return False
    return True


def listing(url: str) -> dict[str, str]:
    """URLs of the files in a folder of a store, by their names; of the hub, at the commit that there is now.

    Raises: CheckpointError.
    """
    return (hub if url.startswith("hf://") else buckets).listing(url)


def put(url: str, paths: Mapping[str, Path]):
    """Put files into a folder of a store, by their names there, each whole or not at all, in place of what is there.

    On the hub it is one commit. Raises: CheckpointError.
    """
    url = url.rstrip("/")
    if url.startswith("hf://"):
        first = f"{url}/{next(iter(paths))}"
        repository = first.removesuffix(f"/{hub_parts(first)[2]}")
        start = f"{url}/".removeprefix(f"{repository}/")
        hub.commit(repository, {start + name: path for name, path in paths.items()}, f"{', '.join(paths)}, by edm2-jax")
    else:
        for name, path in paths.items():
            buckets.put(f"{url}/{name}", path)


def try_writing(url: str):
    """To a folder of a bucket: an object of no bytes, which is taken away again. Raises: CheckpointError."""
    buckets.try_writing(f"{url.rstrip('/')}/.edm2-{uuid.uuid4().hex}")


@contextlib.contextmanager
def uploading(url: str, *, overwrite: bool) -> Iterator[Path]:
    """Yields a path on this disk for a file to be written to, which then goes into the store, whole or not at all.

    If the body raises, nothing does. Raises: FileExistsError if there is one, before and after the body, unless
    `overwrite`; CheckpointError.
    """
    if not overwrite and exists(url):
        raise FileExistsError(f"{url} exists")
    folder, _, name = url.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="edm2-") as here:
        path = Path(here, file_name(url))
        yield path
        if not overwrite and exists(url):
            raise FileExistsError(f"{url} exists")
        put(folder, {name: path})
