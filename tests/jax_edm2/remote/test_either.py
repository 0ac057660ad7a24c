"""Checkpoints in stores, as both have them: an S3 server and a stand-in of the hub on loopback."""

import re
import sys

import jax.numpy as jnp
import pytest

import jax_edm2
from jax_edm2 import CheckpointError
from tests.jax_edm2.remote.outcomes import REPO, same


@pytest.fixture(params=["s3", "hf"])
def stored(request, file):
    """The same checkpoint in either store: (its server, its URL)."""
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        return server, server.put("nets/digits.safetensors", file)
    server = request.getfixturevalue("hub")
    server.commit(REPO, {"digits.safetensors": file})
    return server, f"hf://{REPO}/digits.safetensors"


def test_a_store_gives_what_the_disk_gives(stored, digits, digits_checkpoint):
    _, url = stored
    net, variables = jax_edm2.load(url)
    assert net == digits[0]
    same(variables, digits[1])
    assert jax_edm2.read_record(url) == jax_edm2.read_record(digits_checkpoint)
    same(jax_edm2.load(url, check=False, dtype=jnp.float32)[1], jax_edm2.load(digits_checkpoint, dtype=jnp.float32)[1])


def test_a_record_takes_two_requests(stored):
    server, url = stored
    server.requests.clear()
    jax_edm2.read_record(url)
    assert [each[0] for each in server.requests] == ["HEAD", "GET"]


def test_gs_is_read_as_s3_is(gs, file, digits):
    gs.put("digits.safetensors", file, public=True)
    same(jax_edm2.load("gs://bucket/digits.safetensors")[1], digits[1])


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3://bucket", "s3://bucket/", "s3://user:s3cret@host/x", "s3://b/x?X-Amz-Signature=1", "hf://a/x.safetensors",
     "hf://a/b/../c", "hf://a/b@/c", "https://host/x.safetensors", "ftp://host/x", "memory://x", "gs://b/x/"],
)  # fmt: skip
def test_what_is_no_path(url):
    with pytest.raises(CheckpointError, match=re.escape("is no path of a store; those are s3://bucket/name")) as error:
        jax_edm2.load(url)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(("url", "package"), [("s3://b/x", "obstore"), ("hf://a/b/x", "huggingface_hub")])
def test_a_package_that_is_not_installed(url, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CheckpointError, match=rf"{package}: pip install 'edm2-jax\[remote\]'$"):
        jax_edm2.read_record(url)


def test_the_disk_needs_neither(digits_checkpoint, monkeypatch):
    for package in ("obstore", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    jax_edm2.load(digits_checkpoint)
