"""Folders of stores: what is in them, and files that are put there."""

import pytest

from jax_edm2 import CheckpointError, remote
from jax_edm2.remote.urls import bucket_parts
from tests.jax_edm2.remote.outcomes import REPO
from tests.support.hub import Hub


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket(gs, scheme, tmp_path):
    """Small files and such as are sent in parts, in a folder or in none, and nothing of other folders."""
    for key in gs.names():
        gs.delete(key)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    large.write_bytes(bytes(range(256)) * 50_000)
    url = f"{scheme}://bucket/to/folder"
    for there in (url, f"{url}/", f"{url}2", f"{scheme}://bucket"):
        remote.put(there, {"small.txt": small})
    remote.put(url, {"below/x.txt": small, "large": large})
    remote.try_writing(url)
    assert gs.get("to/folder/large") == large.read_bytes()
    expected = {"small.txt": f"{url}/small.txt", "large": f"{url}/large"}
    assert remote.listing(url) == remote.listing(f"{url}/") == expected
    assert remote.listing(f"{scheme}://bucket") == remote.listing(f"{scheme}://bucket/")
    assert remote.listing(f"{scheme}://bucket/") == {"small.txt": f"{scheme}://bucket/small.txt"}
    assert remote.listing(f"{scheme}://bucket/nothing") == {}
    file = remote.open_remote(f"{url}/large")
    assert bytes(file.read(1, file.size)) == large.read_bytes()[1:]


def test_a_repository(hub, tmp_path, monkeypatch):
    """On the hub several files are one commit, and a listing is of one."""
    (tmp_path / "x").write_bytes(b"abc")
    commit = hub.commit(REPO, {"a.pkl": b"a", "folder/b.pkl": b"b", "folder/below/c.pkl": b"c"})
    assert remote.listing(f"hf://{REPO}") == {"a.pkl": f"hf://{REPO}@{commit}/a.pkl"}
    assert remote.listing(f"hf://{REPO}@main/folder/") == {"b.pkl": f"hf://{REPO}@{commit}/folder/b.pkl"}
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    remote.put(f"hf://{REPO}/folder", {"d.pkl": tmp_path / "x", "e.pkl": tmp_path / "x"})
    remote.put(f"hf://{REPO}@main", {"f.pkl": tmp_path / "x"})
    assert len(hub.commits[REPO]) == 3
    assert sorted(remote.listing(f"hf://{REPO}/folder")) == ["b.pkl", "d.pkl", "e.pkl"]
    assert sorted(remote.listing(f"hf://{REPO}")) == ["a.pkl", "f.pkl"]


@pytest.mark.parametrize(
    "url", ["s3://", "s3://b?x=1", "gs://b/x#y", "s3://user:s3cret@host/x", "hf://owner", "hf://a/b/../c"]
)
def test_what_is_no_folder(url):
    with pytest.raises(CheckpointError, match=r"is no path of a store; those are ") as error:
        remote.listing(url)
    assert "s3cret" not in str(error.value)


def test_a_folder_that_cannot_be_read(s3, hub, monkeypatch):
    for url, text in [("s3://elsewhere/x", "no such bucket"), ("hf://nobody/nothing", "no such repository")]:
        with pytest.raises(CheckpointError, match=text) as error:
            remote.listing(url)
        assert str(error.value).startswith(f"{url}: ")
    s3.answer = lambda environ, number: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(CheckpointError, match=r"^s3://bucket/x: the store refuses it to who you are; set AWS_"):
        remote.listing("s3://bucket/x")
    s3.answer = lambda environ, number: b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    with pytest.raises(CheckpointError, match=r"^s3://bucket/x: the store cannot be read or written"):
        remote.listing("s3://bucket/x")


def test_parts_of_a_url():
    assert bucket_parts("gs://b/a/c.txt") == ("gs", "b", "a/c.txt")
    assert bucket_parts("s3://b.x-1/", folder=True) == ("s3", "b.x-1", "")
