"""Downloads on machines that fail: full disks, kills, other processes, other people."""

import os
import shutil
import subprocess
import time

import numpy as np
import pytest

from jax_edm2.converter.downloads import download
from jax_edm2.converter.downloads.cache import Cache, key_of
from jax_edm2.converter.downloads.cache_files import CacheError
from jax_edm2.converter.downloads.download import DownloadError, fetch
from tests.support import children
from tests.support.downloads import arrives, fails
from tests.support.server import Server, serve

pytestmark = pytest.mark.usefixtures("impatient")


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
