"""Checkpoints in stores: an S3 server and a stand-in of the hub on loopback, sound ones and others."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jax_edm2
from jax_edm2 import CheckpointError, remote
from jax_edm2.safetensors_format import File, _runs
from tests.support.server import Server
from tests.support.stores import S3, Hub, pointed_at, serve_range

REPO = "somebody/digits"


@pytest.fixture(scope="module")
def s3_server():
    with S3() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "WAIT", 0.001)
    s3_server.answer = lambda environ, number: None
    s3_server.refuse = lambda environ, number: False
    s3_server.requests.clear()
    s3_server.gets = 0
    return s3_server


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.001)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as server, pointed_at(server, monkeypatch):
        yield server


@pytest.fixture(scope="module")
def file(digits_checkpoint):
    return digits_checkpoint.read_bytes()


@pytest.fixture(params=["s3", "hf"])
def stored(request, file):
    """The same checkpoint in either store: (its server, its URL)."""
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        return server, server.put("nets/digits.safetensors", file)
    server = request.getfixturevalue("hub")
    server.commit(REPO, {"digits.safetensors": file})
    return server, f"hf://{REPO}/digits.safetensors"


def same(found, expected):
    found, expected = (flatten_dict(each, sep="/") for each in (found, expected))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def fails(url, text, **arguments):
    """One line that begins with the URL, and does not show a secret."""
    with pytest.raises(CheckpointError) as error:
        jax_edm2.load(url, **arguments)
    line = str(error.value)
    assert text in line, line
    assert line.startswith(url), line
    assert "\n" not in line
    assert "s3cret" not in line
    return line


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


def test_gs_is_read_as_s3_is(s3, file, digits, monkeypatch):
    s3.put("digits.safetensors", file, public=True)
    account = f'{{"gcs_base_url": "{s3.environment["AWS_ENDPOINT_URL"]}", "disable_oauth": true, "client_email": "", '
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", account + '"private_key": "", "private_key_id": ""}')
    same(jax_edm2.load("gs://bucket/digits.safetensors")[1], digits[1])


def first_time():
    """Of a range: is it the first one with this end?"""
    seen = set()

    def is_new(asked):
        end = asked.partition("-")[2]
        return end not in seen and not seen.add(end)

    return is_new


# The hub


def test_a_revision_is_pinned(hub, file):
    first = hub.commit(REPO, {"digits.safetensors": file})
    hub.commit(REPO, {"digits.safetensors": b"something else"})
    assert jax_edm2.read_record(f"hf://{REPO}@{first}/digits.safetensors").config.img_resolution == 8
    fails(f"hf://{REPO}/digits.safetensors", "is no safetensors file")


def test_a_branch_that_moves_is_not_followed(hub, file):
    """What was opened is read to its end, as it was."""
    hub.commit(REPO, {"digits.safetensors": file})

    def move(handler, number):
        if number == 1:
            hub.commit(REPO, {"digits.safetensors": b"x" * len(file)})
        return False

    hub.answer = move
    jax_edm2.load(f"hf://{REPO}/digits.safetensors")
    assert len(hub.commits[REPO]) == 2


def test_a_private_repository(hub, file, monkeypatch):
    hub.commit(REPO, {"digits.safetensors": file})
    hub.private.add(REPO)
    fails(
        f"hf://{REPO}/digits.safetensors", "no such repository, or not for who you are: is the name right? Else set HF"
    )
    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    jax_edm2.read_record(f"hf://{REPO}/digits.safetensors")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("hf://nobody/nothing/x.safetensors", "no such repository"),
        (f"hf://{REPO}@old/digits.safetensors", "no such revision"),
        (f"hf://{REPO}/x.safetensors", "no such file"),
    ],
)
def test_what_the_hub_does_not_have(hub, url, text):
    hub.commit(REPO, {"digits.safetensors": b""})
    fails(url, text)


@pytest.mark.parametrize(("options", "text"), [({"shift": 1}, "was it changed?"), ({"whole": True}, "answers 200")])
def test_the_hub_sends_another_range(hub, file, options, text):
    hub.commit(REPO, {"digits.safetensors": file})
    hub.answer = lambda handler, number: number >= 3 and (serve_range(handler, file, **options), True)[1]
    fails(f"hf://{REPO}/digits.safetensors", text)


def test_the_hub_cuts_connections(hub, file, digits, monkeypatch):
    hub.commit(REPO, {"digits.safetensors": file})
    new = first_time()
    hub.answer = lambda handler, number: new(handler.headers["Range"]) and (serve_range(handler, file, cut=10), True)[1]
    same(jax_edm2.load(f"hf://{REPO}/digits.safetensors")[1], digits[1])
    hub.answer = lambda handler, number: (serve_range(handler, file, cut=10), True)[1]
    fails(f"hf://{REPO}/digits.safetensors", "the connection to the hub breaks off, 6 times in a row")


@pytest.mark.parametrize(
    ("status", "text"), [(503, "answers 503"), (429, "answers 429"), (403, "answers 403; set HF_")]
)
def test_the_hub_refuses(hub, file, status, text):
    hub.commit(REPO, {"digits.safetensors": file})
    hub.answer = lambda handler, number: (handler.reply(status), True)[1]
    fails(f"hf://{REPO}/digits.safetensors", text)
    assert hub.gets == (1 if status == 403 else 6)


def test_a_hub_that_is_busy_once(hub, file):
    hub.commit(REPO, {"digits.safetensors": file})
    new = first_time()
    hub.answer = lambda handler, number: new(handler.headers["Range"]) and (handler.reply(503), True)[1]
    jax_edm2.load(f"hf://{REPO}/digits.safetensors")


# Buckets


def part(environ, data, *, etag, cut=None, shift=0, total=None, status="206 Partial Content"):
    """An S3 server's answer to a range request, as bytes."""
    first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", environ["HTTP_RANGE"]).groups())
    body = data[first : last + 1]
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nETag: {etag}\r\n"
        "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n"
        f"Content-Range: bytes {first + shift}-{last + shift}/{total or len(data)}\r\n\r\n"
    )
    return head.encode() + (body if cut is None else body[:cut])


def etag_of(s3, key):
    return s3._client().head_object(Bucket="bucket", Key=key)["ETag"]


def test_cut_connections_go_on_where_they_ended(s3, file, digits):
    url = s3.put("digits.safetensors", file)
    etag = etag_of(s3, "digits.safetensors")
    new = first_time()  # what follows of a range has its end
    s3.answer = lambda environ, _: part(environ, file, etag=etag, cut=1000) if new(environ["HTTP_RANGE"]) else None
    same(jax_edm2.load(url)[1], digits[1])


def test_connections_that_are_always_cut(s3, file):
    url = s3.put("digits.safetensors", file)
    etag = etag_of(s3, "digits.safetensors")
    s3.answer = lambda environ, number: part(environ, file, etag=etag, cut=0)
    fails(url, "the store cannot be read or written (Generic S3 error: ")
    assert s3.gets < 50


@pytest.mark.parametrize("options", [{"shift": 1}, {"total": 10**9}, {"status": "200 OK"}], ids=str)
def test_wrong_ranges(s3, file, options):
    url = s3.put("digits.safetensors", file)
    etag = etag_of(s3, "digits.safetensors")
    s3.answer = lambda environ, number: part(environ, file, etag=etag, **options) if number >= 3 else None
    fails(url, "")


def test_other_bytes_are_refused_by_their_digest(s3, file):
    url = s3.put("digits.safetensors", file)
    other = file[:-100] + bytes(100)
    etag = etag_of(s3, "digits.safetensors")
    s3.answer = lambda environ, number: part(environ, other, etag=etag) if number >= 3 else None
    fails(url, "its tensors were altered")


def test_an_object_that_changes(s3, file):
    """The store says so; one that knows no If-Match is found out by the ETag that it sends."""
    url = s3.put("digits.safetensors", file)

    def change(environ, number):
        if number == 2:
            s3.put("digits.safetensors", file[:-1] + b"x")

    s3.answer = change
    fails(url, "was changed while it was read")
    s3.answer = lambda environ, number: part(environ, file, etag='"other"') if number >= 3 else None
    fails(s3.put("digits.safetensors", file), "was changed while it was read")


def test_an_object_that_is_not_there(s3):
    fails("s3://bucket/nothing.safetensors", "there is no such object, or no such bucket")
    fails("s3://no-such-bucket/x.safetensors", "there is no such object, or no such bucket")


def test_no_checkpoint(s3):
    fails(s3.put("empty.safetensors", b""), "is no safetensors file")
    fails(s3.put("short.safetensors", b"abc"), "is no safetensors file")
    fails(s3.put("pickle.safetensors", b"\x80\x04" + bytes(100)), "a pickle: a snapshot?")


def test_who_is_refused(s3, file):
    url = s3.put("digits.safetensors", file)
    s3.answer = lambda environ, number: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    fails(url, "the store refuses it to who you are; set AWS_ACCESS_KEY_ID")


def test_no_credentials(s3, file, monkeypatch):
    """obstore looks for them on the machine's own metadata server last: here, one that has none."""
    url = s3.put("digits.safetensors", file)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with Server(b"") as machine:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", machine.url().partition("/edm2")[0])
        fails(url, "there are no credentials; set AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    fails(url, "the store refuses it to who you are")
    s3.put("digits.safetensors", file, public=True)
    jax_edm2.read_record(url)


# Writing


@pytest.fixture(params=["s3", "hf"])
def place(request, monkeypatch):
    """Either store, and what reads from it: (server, URL, bytes or None)."""
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        for key in list(server.keys()):
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
    assert not (server.at(REPO, "main")[1] if isinstance(server, Hub) else server.keys())


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


# What needs no server


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


# Parts


def test_runs_are_what_a_part_consists_of(digits_checkpoint):
    """Of parts of every kind, the bytes are those that numpy would take."""
    rng = np.random.default_rng(0)
    whole = digits_checkpoint.read_bytes()
    with File(digits_checkpoint) as found:
        for name, entry in found.entries.items():
            (array, _), *_ = found.arrays([(name, found.whole(name))], hashed=False)
            for _ in range(3):
                box = tuple(tuple(sorted(map(int, rng.choice(n + 1, 2, replace=False)))) for n in entry.shape)
                bytes_ = b"".join(whole[first : first + count] for first, count in _runs(entry, box))
                expected = array[tuple(slice(*ends) for ends in box)]
                assert bytes_ == expected.tobytes()
                (part, _), *_ = found.arrays([(name, box)], hashed=False)
                np.testing.assert_array_equal(part, expected)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """A sharding as one of several processes sees it: it has the first device alone."""

    sharding: jax.sharding.NamedSharding
    is_fully_addressable = False

    def addressable_devices_indices_map(self, shape):
        device, index = next(iter(self.sharding.devices_indices_map(shape).items()))
        return {device: index}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_process_reads_its_parts_alone(s3, file, digits, monkeypatch, axis):
    url = s3.put("digits.safetensors", file)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, "data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    leaves = flatten_dict(digits[1], sep="/")

    def is_split(leaf):  # the linear ones alone have few rows: each is a request
        return leaf.ndim > axis and (axis == 0 or leaf.ndim == 2) and leaf.shape[axis] % 2 == 0

    where = {path: OneOf(split if is_split(leaf) else everywhere) for path, leaf in leaves.items()}
    monkeypatch.setattr("jax_edm2.placement.placement", lambda sharding, paths: where)
    # The other process's device is one of ours: nothing is put there.
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, callback: callback(
            next(iter(sharding.addressable_devices_indices_map(shape).values()))
        ),
    )
    monkeypatch.setattr(jax, "device_put", lambda array, sharding: array)
    _, variables = jax_edm2.load(url, sharding=split)
    share = 0
    for path, found in flatten_dict(variables, sep="/").items():
        index = next(iter(where[path].addressable_devices_indices_map(leaves[path].shape).values()))
        np.testing.assert_array_equal(found, leaves[path][index])
        share += found.nbytes
    assert axis or share < 0.6 * len(file)
    assert s3.sent <= share + 2**16
