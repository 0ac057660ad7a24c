"""Buckets, and servers that misbehave."""

import re

import pytest

import jax_edm2
from tests.jax_edm2.remote.outcomes import fails, first_time, same
from tests.support.server import Server


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
