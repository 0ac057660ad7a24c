"""What the tests of downloads have in common."""

import hashlib

import pytest

from jax_edm2.converter.downloads.cache import key_of
from jax_edm2.converter.downloads.download import DownloadError, fetch
from jax_edm2.converter.snapshot import read_snapshot


def check(path):
    read_snapshot(path).close()


def left(cache):
    """Names in the cache, but for the finished file and its record."""
    return sorted(path.name[33:] for path in cache.folder.iterdir() if "_" not in path.name[:33])


def arrives(server, cache, check=check, **arguments):
    """The file is intact, and beside it there is nothing but its record."""
    path = fetch(server.url(), cache, check=check, **arguments)
    assert path.read_bytes() == server.data
    assert path.name == f"{key_of(server.url())}_edm2-img512-s-2147483-0.130.pkl"
    assert left(cache) == ["json"]
    assert cache.find(server.url()).record["sha256"] == hashlib.sha256(server.data).hexdigest()


def fails(server, cache, text, keeps=(), **arguments):
    """One line that begins with the URL, and nothing left behind but what can be resumed."""
    with pytest.raises(DownloadError) as error:
        fetch(server.url(), cache, check=check, **arguments)
    message = str(error.value)
    assert text in message, message
    assert "\n" not in message
    assert message.startswith(server.url()), message
    assert [name.rpartition(".")[2] for name in left(cache)] == list(keeps)
