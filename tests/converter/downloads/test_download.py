"""Downloads against a real server on loopback that misbehaves in every way that servers do."""

import gzip
import hashlib
import shutil
import time

import numpy as np
import pytest

from jax_edm2.converter.downloads import download
from jax_edm2.converter.downloads.cache import Cache
from jax_edm2.converter.downloads.cache_files import CacheError
from jax_edm2.converter.downloads.download import DownloadError, fetch
from tests.support.downloads import arrives, fails
from tests.support.server import Server, hang_up, serve

pytestmark = pytest.mark.usefixtures("impatient")


# Good servers


def test_a_file_is_fetched_once(data, cache):
    with Server(data) as server:
        arrives(server, cache)
        arrives(server, cache)
        assert len(server.requests) == 1
        assert server.requests[0]["Accept-Encoding"] == "identity"
    arrives(server, cache, offline=True)  # and the server is not there any more


def test_without_length_or_etag(data, cache, tmp_path):
    for options in ({"chunked": True}, {"length": False}, {"etag": None}, {"etag": 'W/"v1"'}, {"ranges": False}):
        with Server(data, lambda handler, _, options=options: serve(handler, **options)) as server:
            arrives(server, Cache(tmp_path / str(options)))


def test_redirects_are_followed(data, cache):
    def answer(handler, number):
        if number < 3:
            redirect(handler, f"/edm2/elsewhere{number}.pkl")
        else:
            serve(handler)

    with Server(data, answer) as server:
        arrives(server, cache)


def redirect(handler, target):
    handler.send_response(302)
    handler.send_header("Location", target)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def test_a_proxy_is_used(data, cache, monkeypatch):
    with Server(data) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url().rpartition("/edm2")[0])
        path = fetch("http://no-such-host.invalid/x.pkl", cache)
        assert path.read_bytes() == data


# Breaks


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_cut_anywhere_is_resumed(data, tmp_path, reset):
    """200 downloads, each cut at another random offset; only what is missing is fetched again."""
    again = []
    for i, cut in enumerate(np.random.default_rng(reset).integers(1, len(data), 200)):
        cache = Cache(tmp_path / str(i))

        def answer(handler, number, cut=int(cut)):
            serve(handler, cut=cut if number == 0 else None, reset=reset)

        with Server(data, answer) as server:
            arrives(server, cache, check=str)
            again.append(server.sent - len(data))
            if not reset:  # all that was sent has arrived
                assert server.requests[1]["Range"] == f"bytes={cut}-"
                assert server.requests[1]["If-Range"] == '"v1"'
        shutil.rmtree(cache.folder)
    if not reset:
        assert set(again) == {0}
    assert max(again) <= len(data)  # a reset throws away what the client has not read yet


def test_one_download_cut_two_hundred_times(data, cache):
    cuts = np.sort(np.random.default_rng(0).integers(1, len(data), 200)).tolist()
    with Server(data, lambda handler, number: serve(handler, cut=dict(enumerate(cuts)).get(number))) as server:
        arrives(server, cache, check=str)
        assert server.sent == len(data)


def test_a_cut_without_strong_etag_begins_again(data, tmp_path):
    for options in ({"etag": None}, {"etag": 'W/"v1"'}, {"ranges": False}, {"chunked": True}):

        def answer(handler, number, options=options):
            serve(handler, cut=100_000 if number < 2 else None, **options)

        with Server(data, answer) as server:
            arrives(server, Cache(tmp_path / str(options)))
            assert len(server.requests) == 3


def test_a_server_that_always_cuts_is_given_up(data, cache):
    def answer(handler, number):
        if number == 0:
            serve(handler, cut=100_000)
        else:
            hang_up(handler, reset=bool(number % 2))

    with Server(data, answer) as server:
        fails(server, cache, "7 times in a row; 100,000 bytes are kept, run it again to go on", keeps=["json", "part"])
        assert len(server.requests) == 8
        server.answer = lambda handler, number: serve(handler)
        arrives(server, cache)
        assert server.requests[-1]["Range"] == "bytes=100000-"
        assert server.sent == len(data)


def test_a_stall_is_a_break(data, cache):
    def answer(handler, number):
        if number == 0:
            serve(handler, data=data[:50_000], headers={"Content-Length": str(len(data))}, length=False)
            time.sleep(1)
        else:
            serve(handler)

    with Server(data, answer) as server:
        arrives(server, cache, timeout=0.3)
        assert len(server.requests) == 2


def test_answers_that_pass(data, cache):
    """Busy servers are asked again."""

    def answer(handler, number):
        serve(handler, status={0: 503, 1: 429, 2: 500, 3: 408}.get(number), headers={"Retry-After": "0"})

    with Server(data, answer) as server:
        arrives(server, cache)
        assert len(server.requests) == 5


# Servers that do not keep to what Range means


@pytest.mark.parametrize(
    "options",
    [
        {"content_range": "bytes 0-99/100"},
        {"content_range": "bytes 5-1/7"},
        {"content_range": "nonsense"},
        {"etag": '"v2"', "content_range": "bytes 50000-{last}/{size}"},
        {"status": 200},
        {"status": 206, "ranges": False},
    ],
)
def test_wrong_answers_to_a_range(data, cache, options):
    def answer(handler, number):
        if number == 0:
            serve(handler, cut=50_000)
        elif number == 1:
            given = dict(options)
            if "content_range" in given:
                given["content_range"] = given["content_range"].format(last=len(data) - 1, size=len(data))
            serve(handler, **{"ranges": False, **given})
        else:
            serve(handler, ranges=False)

    with Server(data, answer) as server:
        arrives(server, cache)


def test_416(data, cache):
    def answer(handler, number):
        if number == 1:
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            serve(handler, cut=50_000 if number == 0 else None)

    with Server(data, answer) as server:
        arrives(server, cache)


def test_an_object_that_changes_between_resumes(data, cache, digits_pkl):
    old = bytes(reversed(data))

    def answer(handler, number):
        serve(handler, **({"data": old, "etag": '"old"', "cut": 700_000} if number == 0 else {}))

    with Server(data, answer) as server:
        arrives(server, cache)
        assert server.requests[1]["If-Range"] == '"old"'


def test_a_part_that_is_longer_than_the_object(data, cache):
    with Server(data, lambda handler, number: serve(handler, cut=50_000) if not number else hang_up(handler)) as server:
        fails(server, cache, "50,000 bytes are kept", keeps=["json", "part"])
        (part,) = cache.parts()
        part.write_bytes(data + b"more")
        server.answer = lambda handler, number: serve(handler)
        arrives(server, cache)


def test_a_part_that_is_complete(data, cache):
    """Of a process that was killed between the last byte and the renaming."""
    with Server(data, lambda handler, number: serve(handler, cut=50_000) if not number else hang_up(handler)) as server:
        fails(server, cache, "50,000 bytes are kept", keeps=["json", "part"])
        (part,) = cache.parts()
        part.write_bytes(data)
        arrives(server, cache)


# Servers that send something else


def test_what_is_refused(data, tmp_path, monkeypatch):
    page = b"<!DOCTYPE html><title>Please log in</title>"
    monkeypatch.setattr(download, "LARGEST", len(data))
    cases = [
        ({"status": 404}, "answers 404 Not Found (is the name right?)"),
        ({"status": 403}, "answers 403 Forbidden (it wants a login)"),
        ({"status": 204}, "answers 204 No Content"),
        ({"data": page, "headers": {"Content-Type": "text/html; charset=utf-8"}}, "is a web page"),
        ({"data": page}, "what the server sent was not kept: is no pickle, but a web page"),
        ({"data": b""}, "was not kept: is empty"),
        ({"data": data + b"excess", "length": False}, "does not end within"),
        ({"data": data[:-1] + b"x"}, "was not kept: opcode 0x78 has no place in a snapshot"),
        ({"length": False, "data": data[:700_000]}, "was not kept: breaks off at byte 700000"),
        ({"headers": {"Content-Encoding": "gzip"}, "data": gzip.compress(data)[:1000]}, "sends it compressed (gzip)"),
    ]
    for i, (options, text) in enumerate(cases):
        if "follow" in text:
            monkeypatch.setattr(download, "LARGEST", 2**40)
        with Server(data, lambda handler, _, options=options: serve(handler, **options)) as server:
            fails(server, Cache(tmp_path / str(i)), text)


def test_excess_body_is_left_alone(data, cache):
    with Server(data, lambda handler, _: serve(handler, excess=b"excess")) as server:
        arrives(server, cache)


def test_redirect_loops(data, cache):
    with Server(data, lambda handler, _: redirect(handler, handler.path)) as server:
        fails(server, cache, "is redirected more than 10 times")
        assert len(server.requests) == 11


def test_no_server_at_all(cache):
    with pytest.raises(DownloadError, match="not in the cache"):
        fetch("http://127.0.0.1:1/x.pkl", cache, offline=True)
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:1/x.pkl: Connection refused, 7 times in a row"):
        fetch("http://user:secret@127.0.0.1:1/x.pkl?token=secret", cache)


# Hashes


def test_sha256_is_demanded_recorded_and_checked(data, cache):
    right = hashlib.sha256(data).hexdigest()
    with Server(data) as server:
        fails(server, cache, f"its sha256 is {right}, not {'0' * 64} as demanded", sha256="0" * 64)
        arrives(server, cache, sha256=right.upper())
        path = cache.find(server.url()).path
        with pytest.raises(CacheError, match="as demanded"):
            fetch(server.url(), cache, sha256="0" * 64)
        altered = bytearray(data)
        altered[-20] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CacheError, match=r"was altered: its sha256 is .* remove it with `edm2-convert cache clear"):
            fetch(server.url(), cache)
        assert path.read_bytes() == altered  # nothing is lost


def test_a_file_fetched_by_nvlabs_tool_is_found(data, cache, tmp_path):
    theirs = tmp_path / "dnnlib"
    theirs.mkdir()
    with Server(data) as server:
        name = f"{hashlib.md5(server.url().encode()).hexdigest()}_http___127.0.0.1_edm2-img512-s-2147483-0.130.pkl"
        (theirs / name).write_bytes(data)
        both = Cache(cache.folder, (theirs,))
        for _ in range(2):
            assert fetch(server.url(), both) == theirs / name
        assert server.requests == []
    assert both.find(server.url()).record["sha256"] == hashlib.sha256(data).hexdigest()
    (theirs / name).write_bytes(data[:-1])
    with pytest.raises(CacheError, match="was altered"):
        fetch(server.url(), both)
