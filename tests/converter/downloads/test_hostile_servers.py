"""Servers that keep a client busy for ever, or send headers that no server sends."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jax_edm2.converter.downloads import download
from jax_edm2.converter.downloads.cache import LARGEST, Cache
from jax_edm2.converter.downloads.download import DownloadError, fetch
from jax_edm2.converter.errors import ConverterError
from tests.support.downloads import arrives, fails
from tests.support.server import Raw, Server, drip, serve

pytestmark = pytest.mark.usefixtures("impatient")

OK = b"HTTP/1.1 200 OK\r\n"
SOUND = OK + b'ETag: "v1"\r\nContent-Length: 1000000\r\n\r\n'
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def said(url, cache, **arguments):
    """What is said of a download that fails. It ends: no server keeps this test waiting."""
    found = []

    def run():
        with pytest.raises(ConverterError) as error:
            fetch(url, cache, **arguments)
        found.append(str(error.value))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(100)
    assert found, "it does not end"
    assert "\n" not in found[0]
    return found[0]


# Time

DRIPS = {
    "nothing at all": (b"", b"", ""),
    "a status line": (b"HTTP/1.1 200 ", b"O", "headers were not complete"),
    "one header": (OK + b"X: ", b"x", "headers were not complete"),
    "many headers": (OK, b"X: x\r\n", "headers were not complete"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", "headers were not complete"),
    "a header of 100 Continue": (b"HTTP/1.1 100 Continue\r\n", b"X: x\r\n", "headers were not complete"),
    "a body": (SOUND, b"x", "which is too slow"),
    "a body without length": (OK + b"\r\n", b"x", "which is too slow"),
    "chunks": (CHUNKED, b"1\r\nx\r\n", "which is too slow"),
    "the size of a chunk": (CHUNKED, b"0", "which is too slow"),
    "an extension of a chunk": (CHUNKED + b"5;", b"x", "which is too slow"),
    "trailers": (CHUNKED + b"0\r\n", b"X: x\r\n", "which is too slow"),
    "a redirect's body": (b"HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n", b"x", "redirected more than 10 times"),
    "an error's body": (b"HTTP/1.1 404 Not Found\r\n\r\n", b"x", "answers 404 Not Found"),
}


@pytest.mark.parametrize("what", DRIPS)
def test_what_is_dripped(what, cache, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    start, piece, expected = DRIPS[what]
    with Raw(lambda connection, _: drip(connection, start, piece)) as server:
        text = said(server.url(), cache, timeout=0.15)
        busy = ("nothing came for too long", "headers were not complete")  # what a busy machine may make of it
        assert any(each in text for each in (expected, *busy)), text


def test_a_handshake_is_dripped(cache, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    with Raw(lambda connection, _: drip(connection, b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"x")) as server:
        text = said(server.url("https"), cache, timeout=0.15)
        assert "headers were not complete" in text or "nothing came for too long" in text, text


@pytest.mark.parametrize(
    ("piece", "expected"),
    [(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "headers have no end"), (b"X: x\r\n" * 1000, "no HTTP")],
)
def test_headers_without_end(cache, piece, expected):
    """At full speed: a matter of bytes, and not of time."""
    with Raw(lambda connection, _: drip(connection, b"" if b"100" in piece else OK, piece, 0)) as server:
        assert expected in said(server.url(), cache)
        assert server.count == 7


def test_a_slow_server_is_tried_again_and_resumed(data, cache):
    def answer(connection, number):
        if number == 0:
            drip(connection, OK + b'ETag: "v1"\r\nContent-Length: %d\r\n\r\n' % len(data) + data[:50_000], b"")
        drip(connection, b"HTTP/1.1 404 Not Found\r\n\r\n", b"")

    with Raw(answer) as server:
        assert "404" in said(server.url(), cache, timeout=1)
    (part,) = cache.parts()
    assert part.read_bytes() == data[:50_000]


def test_a_byte_for_every_attempt(data, cache):
    with Server(data, lambda handler, number: serve(handler, cut=number + 1)) as server:
        fails(server, cache, "7 times in a row; 7 bytes are kept", keeps=["json", "part"])
        assert len(server.requests) == 7


def test_a_kilobyte_a_minute(data, cache, monkeypatch):
    """By a clock of our own, on which an attempt takes a minute."""
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    with Server(data, lambda handler, number: serve(handler, cut=1000 * (number + 1))) as server:
        text = "all attempts together bring less than 1,000 bytes a second; 11,000 bytes are kept"
        fails(server, cache, text, keeps=["json", "part"])
        assert len(server.requests) == 11


def test_headers_cut_anywhere(data, tmp_path):
    """They are not taken for complete ones: of `Content-Length: 1497170`, 1497 is a number too."""
    whole = OK + b'ETag: "v1"\r\nContent-Length: %d\r\n\r\n' % len(data)
    for cut in range(0, len(whole), 3):

        def answer(connection, number, cut=cut):
            connection.recv(10_000)
            connection.sendall(whole[:cut] if number == 0 else whole + data)

        with Raw(answer) as server:
            path = fetch(server.url(), Cache(tmp_path / str(cut)))
            assert path.read_bytes() == data
            assert server.count == 2
            path.unlink()


# Headers

NO_NUMBERS = ("9" * 5000, "-1", "+5", "1_000", "٣٤", "²", "0x10", "1e3", "5, 5", "5 5", "", "nan")


def answer_with(**headers):
    def answer(connection, _number):
        connection.recv(10_000)
        lines = {"ETag": '"v1"', "Content-Length": "100", **{k.replace("_", "-"): v for k, v in headers.items()}}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.sendall(OK + text.encode() + b"\r\n" + b"x" * 100)

    return answer


@pytest.mark.parametrize("length", NO_NUMBERS, ids=lambda text: ascii(text[:9]))
def test_content_length(cache, length):
    with Raw(answer_with(Content_Length=length)) as server:
        assert said(server.url(), cache) == f"{server.url()}: the server sends a Content-Length that is no number"
        assert server.count == 1


def test_content_length_of_too_much(cache):
    with Raw(answer_with(Content_Length=str(LARGEST + 1))) as server:
        assert "says that it has 8,589,934,593 bytes; 8,589,934,592 are the most" in said(server.url(), cache)


def test_content_length_beside_chunks_says_nothing(data, cache):
    with Server(data, lambda handler, _: serve(handler, chunked=True, headers={"Content-Length": "5"})) as server:
        arrives(server, cache)


@pytest.mark.parametrize("wait", ["9" * 5000, "99999", "-1", "inf", "nan", "1e999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after(data, cache, monkeypatch, wait):
    waits = []
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=waits.append))
    headers = {"Retry-After": wait}
    with Server(data, lambda h, number: serve(h, status=None if number else 503, headers=headers)) as server:
        arrives(server, cache)
    assert len(waits) == 1
    assert 0 <= waits[0] <= 30


@pytest.mark.parametrize("value", [f"bytes {'9' * 5000}-{'9' * 5000}/{'9' * 5000}", "bytes ²-²/²", "bytes -5--1/5"])
def test_content_range(data, cache, value):
    def answer(handler, number):
        if number == 1:
            handler.wfile.write(b"HTTP/1.1 206 Partial\r\nContent-Length: 5\r\nContent-Range: " + value.encode())
            handler.wfile.write(b"\r\n\r\nhello")
        else:
            serve(handler, cut=50_000 if number == 0 else None)

    with Server(data, answer) as server:
        arrives(server, cache)


@pytest.mark.parametrize("etag", ['"' + "x" * 60_000 + '"', '"\x80"', '"a"b"', '"', "", "v1"], ids=range(6))
def test_an_etag_that_is_none_is_not_resumed(data, cache, etag):
    with Server(data, lambda handler, n: serve(handler, cut=None if n else 50_000, etag=etag)) as server:
        arrives(server, cache)
        assert "Range" not in server.requests[1]


def test_mutants_of_headers(cache, monkeypatch):
    """300 answers made of odd parts: each is one line, or a file of 100 bytes, and nothing is left for the next."""
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None))
    rng = np.random.default_rng(0)
    names = [
        "Content-Length",
        "ETag",
        "Retry-After",
        "Content-Encoding",
        "Content-Type",
        "Transfer-Encoding",
        "Location",
        "Content-Range",
        "Set-Cookie",
        "Connection",
        "x" * 300,
        "",
        " ",
        "\x00",
        "Content-Length ",
    ]
    values = [
        *NO_NUMBERS,
        "100",
        '"v2"',
        "gzip",
        "br\x1b[2J",
        "text/html",
        "chunked",
        "http://[::1/x",
        "//u:p@h\\",
        "close",
        "a=b; Domain=x",
        "bytes 0-99/100",
        "é" * 100,
        "x" * 70_000,
        " " * 1000,
        ":",
        "\r\n a",
        "\x00",
    ]
    starts = ["HTTP/1.1 200 OK", "HTTP/1.1 206 OK", "HTTP/1.1 302 Found", "HTTP/1.1 503 x", "HTTP/1.0 200", "x",
              "HTTP/1.1 99999999999 OK", "HTTP/1.1 -200 OK", "HTTP/1.1 999 \x1b[2J", "ICY 200 OK", "", "HTTP/2 200",
              "HTTP/1.1 ²00 OK"]  # fmt: skip

    def answer(connection, _number):
        connection.recv(10_000)
        start = starts[rng.choice(len(starts), p=[0.4] + [0.05] * 12)]
        lines = [f"{rng.choice(names)}: {rng.choice(values)}" for _ in range(rng.integers(6))]
        connection.sendall("\r\n".join([start, *lines, "", ""]).encode() + b"x" * 100)

    kept, said = 0, []
    with Raw(answer) as server:
        for i in range(300):
            try:
                path = fetch(f"{server.url()}?{i}", cache, timeout=5)
            except DownloadError as error:
                said.append(str(error))
            else:
                kept += path.stat().st_size == 100
        assert all(line.startswith(f"{server.url()}: ") and line.isprintable() and len(line) < 300 for line in said)
    assert 20 < kept < 280
