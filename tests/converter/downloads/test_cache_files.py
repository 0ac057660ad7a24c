"""The cache among other people, and with records that are damaged."""

import grp
import json
import os
import pwd
import stat
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from jax_edm2.converter.cli.convert import edm2_convert
from jax_edm2.converter.downloads import cache_files, download
from jax_edm2.converter.downloads.cache import Cache, DamagedError, key_of, read_part, read_record, write_json
from jax_edm2.converter.downloads.cache_files import CacheError, check_folder, make_folder, open_file
from jax_edm2.converter.downloads.download import fetch
from tests.support.downloads import fails
from tests.support.server import Server, hang_up, serve

URL = "http://127.0.0.1:1/x.pkl"
KEY = key_of(URL)
NOBODY = 65534


@pytest.fixture
def cache(tmp_path):
    make_folder(tmp_path / "downloads")
    return Cache(tmp_path / "downloads")


def refused(cache, text, **arguments):
    with pytest.raises(CacheError, match=text) as error:
        fetch(URL, cache, **arguments)
    assert "\n" not in str(error.value)


def command(*arguments):
    result = CliRunner().invoke(edm2_convert, ["cache", *arguments], standalone_mode=False)
    assert result.exception is None or isinstance(result.exception, CacheError), result.exception
    return result


# Links


def plant(path, kind, victim):
    """Something that is no file of ours, under a name in the cache."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling link":
        path.symlink_to(victim.with_name("to-be-made"))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("name", [f"{KEY}_x.pkl", f"{KEY}_other.pkl", f"{KEY}.lock"])
def test_what_is_no_file(cache, tmp_path, kind, name):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plant(cache.folder / name, kind, victim)
    refused(cache, f"{name}: is (a link, which the cache does not follow|no regular file); remove it$")
    assert sorted(os.listdir(cache.folder)) == [name]
    assert sorted(os.listdir(tmp_path)) == ["downloads", "victim"]
    assert victim.read_bytes() == b"precious"
    command("list", "--cache-dir", cache.folder)
    assert command("verify", "--cache-dir", cache.folder).return_value == (0 if name.endswith("lock") else 2)
    command("clear", "--cache-dir", cache.folder, "--all")
    assert sorted(os.listdir(cache.folder)) == [name]


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("what", ["record", "part", "part's record", "target"])
def test_what_is_no_file_while_fetching(digits_pkl, cache, tmp_path, monkeypatch, kind, what):
    """Of a name that the download itself comes upon."""
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    data, victim = digits_pkl.read_bytes(), tmp_path / "victim"
    victim.write_bytes(b"precious")
    with Server(data, lambda h, n: hang_up(h) if n else serve(h, cut=50_000)) as server:
        fails(server, cache, "50,000 bytes are kept", keeps=["json", "part"])
        (part,) = cache.parts()
        key = key_of(server.url())
        path = {
            "record": cache.folder / f"{key}.json",
            "part": part,
            "part's record": part.with_suffix(".json"),
            "target": cache.folder / f"{key}_edm2-img512-s-2147483-0.130.pkl",
        }[what]
        path.unlink(missing_ok=True)
        if what == "record":
            path.with_name(f"{key}_y.pkl").write_bytes(data)
        if what == "target":  # it appears meanwhile
            server.answer = lambda handler, _: (plant(path, kind, victim), serve(handler))
        else:
            server.answer = lambda handler, _: serve(handler)
            plant(path, kind, victim)
        with pytest.raises(CacheError, match=r"is a link, which the cache does not follow|is no regular file"):
            fetch(server.url(), cache)
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("to-be-made").exists()
    assert os.path.lexists(path)
    assert not stat.S_ISREG(os.lstat(path).st_mode)


def test_a_part_with_another_name_elsewhere_is_not_written(digits_pkl, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    with Server(digits_pkl.read_bytes(), lambda h, n: hang_up(h) if n else serve(h, cut=50_000)) as server:
        fails(server, cache, "50,000 bytes are kept", keeps=["json", "part"])
        (part,) = cache.parts()
        os.link(part, tmp_path / "elsewhere")
        server.answer = lambda handler, _: serve(handler)
        with pytest.raises(CacheError, match="has another name elsewhere"):
            fetch(server.url(), cache)
    assert (tmp_path / "elsewhere").stat().st_size == 50_000


def test_a_link_is_not_followed_after_the_first_look(cache, tmp_path, monkeypatch):
    """It took the place of a file between a look and the opening."""
    monkeypatch.setattr(cache_files, "check_name", lambda path: True)
    (tmp_path / "victim").write_text("precious")
    (cache.folder / "x").symlink_to(tmp_path / "victim")
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            open_file(cache.folder / "x", flags)
    (cache.folder / "y").symlink_to(tmp_path / "victim")
    write_json(cache.folder / "y", {})
    assert (tmp_path / "victim").read_text() == "precious"


# Folders


def test_folders_are_made_for_us_alone(tmp_path):
    umask = os.umask(0)
    try:
        make_folder(tmp_path / "a" / "b" / "downloads")
    finally:
        os.umask(umask)
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "downloads"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o770, 0o2775, 0o722])
def test_a_folder_that_others_may_write_is_refused(cache, monkeypatch, mode):
    monkeypatch.setattr(cache_files, "_own_group", lambda *_: False)
    (cache.folder / f"{KEY}_x.pkl").write_bytes(b"x")
    os.chmod(cache.folder, mode)
    text = "others may write to this folder: `chmod go-w` it, or choose another cache with --cache-dir or DNNLIB_CACHE"
    refused(cache, text)
    refused(cache, text, offline=True)
    refused(Cache(cache.folder.with_name("ours"), (cache.folder,)), text)  # NVlabs' own
    for arguments in (["list"], ["verify"], ["clear", "--all"]):
        assert isinstance(command(*arguments, "--cache-dir", cache.folder).exception, CacheError)
    (cache.folder / f"{KEY}_x.pkl").unlink()
    refused(cache, text)  # before anything is put into it
    os.chmod(cache.folder, mode | stat.S_ISVTX)
    check_folder(cache.folder)


def test_the_users_own_group_is_nobody_else(cache, monkeypatch):
    """As the umask 002 of Debian and Fedora makes folders."""
    os.chmod(cache.folder, 0o775)
    gid = cache.folder.stat().st_gid
    user, group = SimpleNamespace(pw_name="me", pw_gid=gid), SimpleNamespace(gr_name="me", gr_mem=["me"])
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    monkeypatch.setattr(grp, "getgrgid", lambda _: group)
    check_folder(cache.folder)
    for of, name, value in ((group, "gr_mem", ["me", "you"]), (group, "gr_name", "users"), (user, "pw_gid", gid + 1)):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, value)
            with pytest.raises(CacheError, match="chmod go-w"):
                check_folder(cache.folder)
    check_folder(cache.folder)
    monkeypatch.setattr(os, "listxattr", lambda _: ["system.posix_acl_access"])
    with pytest.raises(CacheError, match="chmod go-w"):
        check_folder(cache.folder)
    monkeypatch.undo()
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])  # a container's user, who has no name
    with pytest.raises(CacheError, match="chmod go-w"):
        check_folder(cache.folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else(cache, tmp_path):
    path = cache.folder / f"{KEY}_x.pkl"
    path.write_bytes(b"x")
    os.chown(path, NOBODY, NOBODY)
    refused(cache, "x.pkl: belongs to somebody else; remove it, or choose another cache")
    path.unlink()
    link = tmp_path / "link"
    link.symlink_to(cache.folder)
    check_folder(link)  # our own
    os.lchown(link, NOBODY, NOBODY)
    refused(Cache(link), "is a link that somebody else made")
    os.chown(cache.folder, NOBODY, NOBODY)
    refused(cache, "belongs to somebody else, who may change what is in it; choose another")


def test_what_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("")
    refused(Cache(tmp_path / "x"), "x: is no folder; choose another")


# Records

DAMAGED = {
    "empty": b"",
    "no JSON": b"sha256",
    "not UTF-8": b'{"sha256": "\xff"}',
    "deep": b"[" * 10_000,
    "deep in a field": b'{"sha256": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "digits": b'{"sha256": ' + b"9" * 5000 + b"}",
    "NaN": b'{"sha256": "%s", "bytes": NaN}' % (b"0" * 64),
    "a list": b"[]",
    "null": b"null",
    "no field": b"{}",
    "short": b'{"sha256": "0"}',
    "capitals": b'{"sha256": "%s"}' % (b"A" * 64),
    "a number": b'{"sha256": 5}',
    "bytes as text": b'{"sha256": "%s", "bytes": "5"}' % (b"0" * 64),
    "bytes as truth": b'{"sha256": "%s", "bytes": true}' % (b"0" * 64),
    "bytes below 0": b'{"sha256": "%s", "bytes": -1}' % (b"0" * 64),
    "bytes too many": b'{"sha256": "%s", "bytes": %d}' % (b"0" * 64, 2**64),
    "bytes as a fraction": b'{"sha256": "%s", "bytes": 1e3}' % (b"0" * 64),
    "a URL as a list": b'{"sha256": "%s", "url": []}' % (b"0" * 64),
    "an ETag as an object": b'{"sha256": "%s", "etag": {}}' % (b"0" * 64),
    "twice": b'{"sha256": "%s", "sha256": "%s"}' % (b"0" * 64, b"1" * 64),
    "huge": b'{"sha256": "%s", "url": "%s"}' % (b"0" * 64, b"x" * 10**6),
    "surrogates": b'{"sha256": "\\ud800"}',
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_record_is_no_missing_one(cache, what):
    """What is beside it may have been altered, and must not be taken for used for the first time."""
    path = cache.folder / f"{KEY}_x.pkl"
    path.write_bytes(b"altered")
    record = cache.folder / f"{KEY}.json"
    record.write_bytes(DAMAGED[what])
    refused(cache, r"json: is damaged \(it .*\): nothing tells .* altered; `edm2-convert cache clear x.pkl` and fetch")
    assert record.read_bytes() == DAMAGED[what]
    assert "DAMAGED           x.pkl" in command("list", "--cache-dir", cache.folder).output
    assert json.loads(command("list", "--json", "--cache-dir", cache.folder).output)["files"][0]["damage"]
    result = command("verify", "--cache-dir", cache.folder)
    assert result.return_value == 2
    assert result.output.startswith("DAMAGED ")
    assert "1 files and 0 parts removed" in command("clear", "x.pkl", "--cache-dir", cache.folder).output
    assert os.listdir(cache.folder) == []


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_record_of_a_part_begins_again(digits_pkl, cache, monkeypatch, what):
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    with Server(digits_pkl.read_bytes(), lambda h, n: hang_up(h) if n else serve(h, cut=50_000)) as server:
        fails(server, cache, "50,000 bytes are kept", keeps=["json", "part"])
        (part,) = cache.parts()
        part.write_bytes(b"something else")
        part.with_suffix(".json").write_bytes(DAMAGED[what])
        assert "(in part)" in command("list", "--cache-dir", cache.folder).output
        server.answer = lambda handler, _: serve(handler)
        assert fetch(server.url(), cache).read_bytes() == server.data
        assert "Range" not in server.requests[-1]


def test_mutants_of_records(cache):
    """300: each is read, with every field what it should be, or is damaged; and an altered file is never accepted."""
    rng = np.random.default_rng(0)
    values = [
        None,
        True,
        -1,
        0,
        5,
        2**70,
        1.5,
        "",
        "x",
        '"v1"',
        "0" * 64,
        "é" * 9,
        "\ud800",
        [],
        {},
        [[]],
        {"sha256": 1},
    ]
    sound = {"sha256": "1" * 64, "url": URL, "bytes": 7, "etag": '"v1"'}
    (cache.folder / f"{KEY}_x.pkl").write_bytes(b"altered")
    path, read = cache.folder / f"{KEY}.json", 0
    for _ in range(300):
        record = dict(sound)
        for _ in range(rng.integers(1, 3)):
            name = ["sha256", "url", "bytes", "etag", "x"][rng.integers(5)]
            if rng.random() < 0.3:
                record.pop(name, None)
            else:
                record[name] = values[rng.integers(len(values))]
        text = json.dumps(record).encode()
        if rng.random() < 0.3:
            at = rng.integers(len(text))
            text = text[:at] + bytes(rng.integers(0, 256, rng.integers(3), dtype=np.uint8)) + text[at + 1 :]
        path.write_bytes(text)
        for reader, field in ((read_record, "sha256"), (read_part, "etag")):
            try:
                found = reader(path)
            except DamagedError as error:
                assert str(error).isprintable()  # noqa: PT017
            else:
                read += 1
                assert isinstance(found[field], str)
                assert type(found.get("bytes", 0)) is int
        refused(cache, "is damaged|was altered")
        for arguments in (["list"], ["list", "--json"], ["verify"]):
            command(*arguments, "--cache-dir", cache.folder)
    assert 50 < read < 500


def test_records_that_were_made_before(cache):
    """By earlier versions, with whatever ETag the server had; and the names in it are not shown as they are."""
    (cache.folder / f"{KEY}_x\x1b[2J\u202e\x9b.pkl").write_bytes(b"x")
    write_json(cache.folder / f"{KEY}.json", {"sha256": "0" * 64, "etag": 'W/"\x80"', "url": "\x1b[2J", "bytes": 1})
    (cache.folder / f"{KEY}.0.part").write_bytes(b"x")
    write_json(cache.folder / f"{KEY}.0.json", {"url": "http://u:secret@[::1/\x1b", "etag": '"v"', "bytes": 5})
    output = command("list", "--cache-dir", cache.folder).output
    assert all(line.isprintable() for line in output.splitlines())
    assert "secret" not in output
    assert r"x\x1b[2J\u202e\x9b.pkl" in output
