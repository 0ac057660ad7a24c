"""What the tests let other processes do: they are killed, or run beside each other. Imports little, to start fast."""

import contextlib
import fcntl
import multiprocessing
import os
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["converter.download", "converter.convert", "converter.snapshot", "tests.children"])


def download(url: str, folder: str, locks: bool = True, lease: bool = True):
    """Fetch into a cache. locks: of the operating system; lease: the one of our own. Without, they do nothing."""
    from converter import download as module
    from converter.cache import Cache

    module.BACKOFF = 0.01
    if not locks:
        fcntl.flock = fcntl.lockf = fcntl.fcntl = lambda *_: 0
    if not lease:
        module.SoftFileLease = lambda *_, **__: contextlib.nullcontext()
    module.fetch(url, Cache(Path(folder)))


def convert(source: str, target: str, format: str):
    from converter.convert import convert
    from converter.snapshot import read_snapshot

    os.environ["JAX_PLATFORMS"] = "cpu"
    with read_snapshot(source) as snapshot:
        convert(snapshot, target, format=format, overwrite=True)


def start(function, *arguments):
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    return process
