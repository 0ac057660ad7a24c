"""Files of stores in the cache: fetched once for every version, and held to what was recorded of them."""

import dataclasses

import pytest

import jax_edm2
from jax_edm2 import CheckpointError
from jax_edm2.converter.downloads.cache import CacheError
from jax_edm2.converter.downloads.download import DownloadError
from jax_edm2.converter.drawing_request import DrawRequest, resolve
from jax_edm2.converter.sources import Fetching, Location
from jax_edm2.record import Sampler
from tests.support.command_line import Tool
from tests.support.hub import serve_range

REPO = "somebody/digits"
CONVERT, VERIFY = Tool("edm2-convert", []), Tool("edm2-verify", [])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


def bring(url, tmp_path, **arguments):
    return Fetching(cache_dir=tmp_path / "files", **arguments).bring(Location(url))


def left(tmp_path):
    return sorted(path.name[33:] for path in (tmp_path / "files").iterdir())


def test_a_version_is_fetched_once(s3, digits_checkpoint, digits_pkl, tmp_path):
    url = s3.put("nets/digits.safetensors", digits_checkpoint.read_bytes())
    path = bring(url, tmp_path)
    assert path.read_bytes() == digits_checkpoint.read_bytes()
    assert left(tmp_path) == ["digits.safetensors", "json"]
    s3.requests.clear()
    assert bring(url, tmp_path) == path
    assert [method for method, *_ in s3.requests] == ["HEAD"]
    s3.put("nets/digits.safetensors", digits_checkpoint.read_bytes() + b"")
    assert bring(url, tmp_path) == path  # the same bytes have the same ETag
    s3.requests.clear()
    assert bring(url, tmp_path, offline=True) == path
    assert s3.requests == []
    snapshot = bring(s3.put("digits.pkl", digits_pkl.read_bytes()), tmp_path)
    assert snapshot.read_bytes() == digits_pkl.read_bytes()


def test_another_version_is_another_file(s3, digits_checkpoint, digits_guide_checkpoint, tmp_path):
    url = s3.put("digits.safetensors", digits_checkpoint.read_bytes())
    first = bring(url, tmp_path)
    s3.put("digits.safetensors", digits_guide_checkpoint.read_bytes())
    second = bring(url, tmp_path)
    assert first != second
    assert second.read_bytes() == digits_guide_checkpoint.read_bytes()
    assert bring(url, tmp_path, offline=True) == second


def test_a_pinned_commit_is_not_asked_for_again(hub, digits_checkpoint, tmp_path):
    commit = hub.commit(REPO, {"digits.safetensors": digits_checkpoint.read_bytes()})
    url = f"hf://{REPO}@{commit}/digits.safetensors"
    path = bring(url, tmp_path)
    hub.requests.clear()
    assert bring(url, tmp_path) == bring(url, tmp_path, offline=True) == path
    assert hub.requests == []


def test_what_is_altered_in_the_cache(s3, digits_checkpoint, tmp_path):
    url = s3.put("digits.safetensors", digits_checkpoint.read_bytes())
    path = bring(url, tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CacheError, match="was altered"):
        bring(url, tmp_path)


def test_what_is_not_kept(s3, hub, digits_checkpoint, tmp_path):
    data = digits_checkpoint.read_bytes()
    with pytest.raises(
        DownloadError, match=r"^s3://bucket/x.safetensors: what the store sent was not kept: is no safe"
    ):
        bring(s3.put("x.safetensors", b"<html>"), tmp_path)
    with pytest.raises(DownloadError, match=r"^s3://bucket/x.pkl: what the store sent was not kept: "):
        bring(s3.put("x.pkl", b"<html>"), tmp_path)
    with pytest.raises(DownloadError, match=r"^s3://bucket/y.safetensors: its sha256 is [0-9a-f]{64}, not 000"):
        bring(s3.put("y.safetensors", data), tmp_path, sha256="0" * 64)
    with pytest.raises(DownloadError, match=r"^s3://bucket/y.safetensors: is not in the cache"):
        bring("s3://bucket/y.safetensors", tmp_path, offline=True)
    hub.commit(REPO, {"digits.safetensors": data})
    hub.answer = lambda handler, number: (serve_range(handler, data, cut=1000), True)[1]
    with pytest.raises(CheckpointError, match=r"breaks off, 6 times"):
        bring(f"hf://{REPO}/digits.safetensors", tmp_path)
    assert left(tmp_path) == []


def test_models_by_url(s3, hub, digits, digits_checkpoint, digits_pkl, tmp_path):
    """Fetched once; with a sharding, read where they are."""
    import jax

    url = s3.put("digits.safetensors", digits_checkpoint.read_bytes())
    hub.commit(REPO, {"digits.pkl": digits_pkl.read_bytes()})
    for name in (url, f"hf://{REPO}/digits.pkl"):
        model = jax_edm2.from_pretrained(name, cache_dir=tmp_path / "files")
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), model.variables, digits[1]))
    assert sum(not name.endswith("json") for name in left(tmp_path)) == 2
    jax_edm2.from_pretrained(url, cache_dir=tmp_path / "other", sharding=jax.devices()[0])
    assert not (tmp_path / "other").exists()


def test_a_guide_is_beside_its_network(s3, digits, digits_checkpoint):
    sampler = Sampler(guidance=1.5, guide="digits-guide.safetensors")
    record = dataclasses.replace(jax_edm2.read_record(digits_checkpoint), sampler=sampler)
    jax_edm2.save("s3://bucket/guided/digits.safetensors", *digits, record=record, overwrite=True)
    resolved = resolve(DrawRequest(net="s3://bucket/guided/digits.safetensors"))
    assert resolved.guide == Location("s3://bucket/guided/digits-guide.safetensors")
    assert resolved.settings.guidance == 1.5


def test_commands(s3, digits_checkpoint, digits_pkl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = s3.put("digits.safetensors", digits_checkpoint.read_bytes())
    done = CONVERT.run(url, "-o", tmp_path / "copy.safetensors")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.safetensors").read_bytes() == digits_checkpoint.read_bytes()
    done = CONVERT.run("check", url)
    assert "sound" in done.stdout, done.stderr
    done = VERIFY.run(digits_pkl, "--checkpoint", url, "--checks", "parameters", "--device", "cpu")
    assert "AGREES" in done.stdout, done.stderr
    done = CONVERT.run(digits_pkl, "-o", "s3://bucket/new/")
    assert done.stdout.startswith("s3://bucket/new/digits.safetensors: 63 tensors"), done.stderr
    CONVERT.fails(
        digits_pkl, "-o", "s3://bucket/new/digits.safetensors",
        text="s3://bucket/new/digits.safetensors exists; use --force to replace it",
    )  # fmt: skip
    assert s3.get("new/digits.safetensors") == digits_checkpoint.read_bytes()
    CONVERT.fails(digits_pkl, "-o", "s3://bucket/new", "--format", "orbax", text="choose another --format")
    CONVERT.fails("s3://bucket/no.safetensors", text="s3://bucket/no.safetensors: there is no such object")
    CONVERT.fails("inspect", "hf://digits.safetensors", text="is no path of a store; those are s3://bucket/name")
