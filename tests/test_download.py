"""Downloads against a real server on loopback that misbehaves in every way that servers do."""

import gzip
import hashlib
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
import requests

from converter import download
from converter.cache import Cache, CacheError, file_name, key_of, public_url
from converter.download import DownloadError, fetch
from converter.snapshot import read_snapshot
from tests import children
from tests.server import Server, hang_up, serve


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    monkeypatch.setattr(download, "STALL", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def data(digits_pkl):
    return digits_pkl.read_bytes()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "downloads")


def check(path):
    read_snapshot(path).close()


def left(cache):
    """Names in the cache, but for the finished file and its record."""
    return sorted(path.name[33:] for path in cache.folder.iterdir() if "_" not in path.name[:33])


def arrives(server, cache, **arguments):
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
            arrives(server, cache)
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
        arrives(server, cache)
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
        arrives(server, cache)
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


def test_redirect_loops_and_downgrades(data, cache):
    with Server(data, lambda handler, _: redirect(handler, handler.path)) as server:
        fails(server, cache, "is redirected more than 10 times")
    response = requests.Response()
    response.status_code, response.url = 302, "https://a.example/x.pkl"
    response.headers["location"] = "http://user:secret@b.example/x.pkl"
    with pytest.raises(requests.exceptions.InvalidSchema, match=r"from https to http://b\.example/x\.pkl"):
        download._Session().get_redirect_target(response)


def test_urls_that_cannot_be_fetched(cache):
    for url in ("ftp://a.example/x.pkl", "file:///etc/passwd", "http://", "http:///x.pkl"):
        with pytest.raises(DownloadError, match="only http and https URLs"):
            fetch(url, cache)
    with pytest.raises(DownloadError, match="not in the cache"):
        fetch("http://127.0.0.1:1/x.pkl", cache, offline=True)
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:1/x.pkl: .*[Cc]onnection refused.*, 7 times in a row"):
        fetch("http://user:secret@127.0.0.1:1/x.pkl?token=secret", cache)
    assert public_url("https://u:p@h.example:8/a/b.pkl?t=1#f") == "https://h.example:8/a/b.pkl"
    assert file_name("https://h.example/a/b%20c.pkl?x=/y") == "b_20c.pkl"
    assert file_name("https://h.example/") == "download"


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


# Machines


def test_a_full_disk(data, cache, monkeypatch):
    with Server(data) as server:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
            fails(server, cache, "make room, or choose another folder with --cache-dir")
        assert server.requests  # asked, but nothing was fetched
        cache.folder.mkdir(exist_ok=True)
        room = [300_000]
        pwrite = os.pwrite

        def full(descriptor, view, offset):
            if room[0] <= 0:
                raise OSError(28, "No space left on device")
            count = pwrite(descriptor, view[: room[0]], offset)
            room[0] -= count
            return count

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(DownloadError, match=r"No space left on device; .* bytes of .* are kept: make room"):
                fetch(server.url(), cache)
        (part,) = cache.parts()
        assert part.stat().st_size == 300_000
        arrives(server, cache)
        assert server.requests[-1]["Range"] == "bytes=300000-"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_disk_that_is_really_full(data, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with Server(data) as server:
            cache = Cache(disk)
            fails(server, cache, "make room, or choose another folder")
            monkeypatch.setattr(download, "SPARE", -(10**9))
            with pytest.raises(DownloadError, match="No space left on device"):
                fetch(server.url(), cache)
            (part,) = cache.parts()
            assert part.read_bytes() == data[: part.stat().st_size] != b""
            subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
            arrives(server, cache)
            assert int(server.requests[-1]["Range"][6:-1]) > 500_000
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_read_only_cache(data, cache, monkeypatch):
    with Server(data) as server:
        arrives(server, cache)
        monkeypatch.setattr(os, "access", lambda *_: False)
        arrives(server, cache)
        with pytest.raises(CacheError, match="the cache is read-only; choose another"):
            fetch(server.url("other.pkl"), cache)


def test_killed_at_any_moment(data, tmp_path):
    """SIGKILL at 100 random moments, of the body and about it; then a second process, which resumes."""
    broken = 0
    with Server(data, lambda handler, number: serve(handler, pause=0.002)) as server:
        for i, moment in enumerate(np.random.default_rng(0).uniform(-0.1, 1.1, 100) * len(data)):
            cache, before = Cache(tmp_path / str(i)), server.sent
            process = children.start(children.download, server.url(), str(cache.folder))
            while process.is_alive() and server.sent - before < min(moment, len(data)):
                time.sleep(0.0005)
            time.sleep(max(moment / len(data) - 1, 0) * 0.1)  # while it is hashed, checked and moved
            process.kill()
            process.join()
            broken += process.exitcode != 0
            process = children.start(children.download, server.url(), str(cache.folder))
            process.join()
            assert process.exitcode == 0
            arrives(server, cache)
            shutil.rmtree(cache.folder)
    assert broken > 50
    assert any("Range" in headers for headers in server.requests)


def test_a_lock_of_a_process_killed_while_it_made_it(data, cache):
    cache.folder.mkdir()
    with Server(data) as server:
        (cache.folder / f"{key_of(server.url())}.lock").touch()
        arrives(server, cache)


@pytest.mark.parametrize(("locks", "lease"), [(True, True), (False, True), (False, False)])
def test_eight_processes_at_once(data, cache, locks, lease):
    with Server(data, lambda handler, number: serve(handler, pause=0.005)) as server:
        arguments = (server.url(), str(cache.folder), locks, lease)
        processes = [children.start(children.download, *arguments) for _ in range(8)]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 8
        if lease:
            assert server.sent <= 1.1 * len(data)
        arrives(server, cache, offline=True)
