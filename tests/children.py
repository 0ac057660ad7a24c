"""What the tests let other processes do: they are killed, or run beside each other. Imports little, to start fast."""

import contextlib
import fcntl
import multiprocessing
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


def convert(source: str, target: str):
    from converter.convert import convert
    from converter.snapshot import read_snapshot

    with read_snapshot(source) as snapshot:
        convert(snapshot, target, overwrite=True)


def write_folder(target: str, content: str, exchange: bool = True):
    """As writers of folders do it. exchange: where paths can be exchanged in one step."""
    from jax_edm2 import files
    from jax_edm2.files import whole_or_nothing

    if not exchange:
        files._exchange = lambda *_: False
    with whole_or_nothing(Path(target), overwrite=True) as temporary:
        temporary.mkdir()
        for i in range(20):
            (temporary / f"file{i}").write_text(content)


def start(function, *arguments):
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    return process
