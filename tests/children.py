"""What the tests let other processes do: they are killed, or run beside each other. Imports little, to start fast."""

import contextlib
import fcntl
import multiprocessing
import os
import re
import sys
from pathlib import Path
from unittest import mock

from converter import processes

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["converter.download", "converter.cli.convert", "tests.children"])


def command(module: str) -> list[str]:
    """A command line for `python -m module`, with Ctrl-C at work: what a shell runs in the background ignores it."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return processes.python(code)


def download(url: str, folder: str, locks: bool = True, lease: bool = True):
    """Fetch into a cache. locks: of the operating system; lease: the one of our own. Without, they do nothing."""
    from converter import download as module
    from converter.cache import Cache

    module.BACKOFF = 0.01
    if not locks:
        fcntl.flock = fcntl.lockf = fcntl.fcntl = lambda *_: 0
    if not lease:
        module._lease = lambda _path: contextlib.nullcontext()
    module.fetch(url, Cache(Path(folder)))


def convert(source: str, target: str):
    from converter.convert import convert
    from converter.snapshot import read_snapshot

    with read_snapshot(source) as snapshot:
        convert(snapshot, target, overwrite=True)


def convert_watched(source: str, target: str, log: str):
    """edm2-convert in the source's folder; `log` gets what it printed, and last its memory in MB above the start."""
    from converter.cli.convert import main

    os.chdir(os.path.dirname(source))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    start = _peak()
    with open(log, "w") as file:
        sys.stdout = sys.stderr = file
        sys.argv = ["edm2-convert", os.path.basename(source), "-o", target]
        try:
            main()
        finally:
            file.write(f"\n{_peak() - start:.1f}" if file.tell() == 0 else f"{_peak() - start:.1f}")


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3


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
    """A process that calls a function of this module. It does not import what was started as the main program."""
    main = sys.modules["__main__"]
    with mock.patch.multiple(main, create=True, __spec__=None, __file__=None):
        process = FORKS.Process(target=function, args=arguments)
        process.start()
    return process
