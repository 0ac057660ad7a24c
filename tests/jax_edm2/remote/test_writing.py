"""What is written to a store is there whole, or not at all."""

import re

import pytest

import jax_edm2
from jax_edm2 import CheckpointError, remote
from tests.jax_edm2.remote.outcomes import REPO, same
from tests.support.hub import Hub


@pytest.fixture(params=["s3", "hf"])
def place(request, monkeypatch):
    """Either store, and what reads from it: (server, URL, bytes or None)."""
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        for key in list(server.names()):
            server.delete(key)
        return server, "s3://bucket/new/tuned.safetensors", lambda: server.get("new/tuned.safetensors")
    server = request.getfixturevalue("hub")
    server.commit(REPO, {})
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    return server, f"hf://{REPO}/new/tuned.safetensors", lambda: server.at(REPO, "main")[1]["new/tuned.safetensors"]


def test_save(place, digits, digits_guide, digits_checkpoint):
    _, url, read = place
    record = jax_edm2.save(url, *digits, record=jax_edm2.read_record(digits_checkpoint))
    before = read()
    assert record == jax_edm2.read_record(url)
    same(jax_edm2.load(url)[1], digits[1])
    with pytest.raises(FileExistsError, match=f"^{re.escape(url)} exists$"):
        jax_edm2.save(url, *digits_guide)
    assert read() == before
    jax_edm2.save(url, *digits_guide, overwrite=True)
    same(jax_edm2.load(url)[1], digits_guide[1])
    with pytest.raises(CheckpointError, match=r"tuned: in a store a checkpoint is one file: end its name in"):
        jax_edm2.save(url.removesuffix(".safetensors"), *digits)


def upload(url, data, *, overwrite=True, meanwhile=lambda: None):
    with remote.uploading(url, overwrite=overwrite) as path:
        path.write_bytes(data)
        meanwhile()


def test_what_fails_before_its_end_leaves_nothing(place):
    server, url, _ = place
    with pytest.raises(ZeroDivisionError):
        upload(url, b"half", meanwhile=lambda: 1 / 0)
    assert not (server.at(REPO, "main")[1] if isinstance(server, Hub) else server.names())


def test_an_upload_that_breaks_off(s3):
    """Of several parts: the object does not appear, and what was there stays."""
    s3.put("large", b"before")
    s3.refuse = lambda environ, number: "partNumber=2" in environ["QUERY_STRING"]
    with pytest.raises(CheckpointError, match=r"^s3://bucket/large: the store refuses"):
        upload("s3://bucket/large", bytes(12_000_000))
    assert s3.get("large") == b"before"


def test_two_writers(s3):
    """Whoever comes second is refused, even if he began first."""
    s3.delete("two")
    with pytest.raises(FileExistsError):
        upload("s3://bucket/two", b"second", overwrite=False, meanwhile=lambda: s3.put("two", b"first"))
    assert s3.get("two") == b"first"


def test_who_may_not_write(s3, hub):
    s3.refuse = lambda environ, number: environ["REQUEST_METHOD"] == "PUT"
    hub.commit(REPO, {})
    for url, text in (
        ("s3://bucket/x", "refuses it to who you are; set AWS_"),
        (f"hf://{REPO}/x", "401; set HF_TOKEN"),
    ):
        with pytest.raises(CheckpointError, match=text):
            upload(url, b"x")
