"""What the tests let other processes do: they are killed, or run beside each other. Imports little, to start fast."""

import contextlib
import fcntl
import importlib
import multiprocessing
import os
import random
import re
import resource
import sys
import time
from pathlib import Path
from unittest import mock

from jax_edm2.converter import processes

FORKS = multiprocessing.get_context("forkserver")
# What commands import is there before they are called.
FORKS.set_forkserver_preload(
    [
        "jax_edm2.converter.downloads.download",
        *(f"jax_edm2.converter.cli.{name}" for name in ("convert", "dataset", "metrics", "sample", "train", "verify")),
        *(f"jax_edm2.{name}" for name in ("generation", "decoding")),
        *(f"jax_edm2.converter.{name}" for name in ("train.loop", "dataset.convert", "dataset.latents")),
        *("orbax.checkpoint", "tests.support.children"),
    ]
)


def command(module: str) -> list[str]:
    """A command line for `python -m module`, with Ctrl-C at work: what a shell runs in the background ignores it."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return processes.python(code)


def download(url: str, folder: str, locks: bool = True, lease: bool = True):
    """Fetch into a cache. locks: of the operating system; lease: the one of our own. Without, they do nothing."""
    from jax_edm2.converter.downloads import download as module
    from jax_edm2.converter.downloads.cache import Cache

    module.BACKOFF = 0.01
    if not locks:
        fcntl.flock = fcntl.lockf = fcntl.fcntl = lambda *_: 0
    if not lease:
        module.lease = lambda _path: contextlib.nullcontext()
    module.fetch(url, Cache(Path(folder)))


def convert(source: str, target: str):
    from jax_edm2.converter.convert import convert
    from jax_edm2.converter.snapshot import read_snapshot

    with read_snapshot(source) as snapshot:
        convert(snapshot, target, overwrite=True)


def phema(indir: str, outdir: str, stds: tuple[float, ...]):
    from jax_edm2.converter import averages
    from jax_edm2.converter.phema import PhemaRequest, reconstruct

    averages.PIECE = 999
    reconstruct(PhemaRequest(Path(indir), Path(outdir), stds, force=True))


def train(data: str, outdir: str, images: int, devices: int, checkpoint: int):
    """A training of a tiny network, on so many devices of this machine, as `edm2-train` does it."""
    import jax

    from jax_edm2.converter.devices import start
    from jax_edm2.converter.train.loop import train
    from tests.support.trainings import request

    jax.config.update("jax_num_cpu_devices", devices)
    start("cpu")
    train(request(Path(data), Path(outdir), images, checkpoint=checkpoint))


def reference(
    data: str,
    dest: str,
    resume: str | None,
    devices: int = 1,
    cluster: tuple[str, int, int] | None = None,
    batch: int = 8,
):
    """Statistics of pictures with a tiny detector, as `edm2-metrics ref` makes them, saved after every batch.

    cluster: where process 0 is, how many processes there are, and which this is.
    """
    import jax

    from jax_edm2.converter.devices import Cluster, start
    from jax_edm2.converter.metrics import measuring
    from jax_edm2.converter.metrics.request import Detection, RefRequest
    from jax_edm2.converter.metrics.run import reference
    from tests.support.detectors import tiny_detector

    measuring.find_detector = tiny_detector
    jax.config.update("jax_num_cpu_devices", devices)
    start("cpu", None if cluster is None else Cluster(*cluster))
    folder = None if resume is None else Path(resume)
    detection = Detection(metrics=("fd_dinov2",), batch=batch, resume=folder, save_every=0)
    reference(RefRequest(data=Path(data), dest=Path(dest), force=True, detection=detection))


def peak_of_reference(data: str, dest: str, peak: str):
    """Likewise; `peak` gets the MB that it took above the imports."""

    import tests.support.detectors  # noqa: F401

    before = _peak()
    reference(data, dest, None, batch=64)
    Path(peak).write_text(f"{_peak() - before:.1f}")


COMMANDS = {
    "edm2-metrics": "jax_edm2.converter.cli.metrics",
    "edm2-train": "jax_edm2.converter.cli.train",
    "edm2-convert": "jax_edm2.converter.cli.convert",
    "edm2-dataset": "jax_edm2.converter.cli.dataset",
    "edm2-phema": "jax_edm2.converter.cli.phema",
    "edm2-sample": "jax_edm2.converter.cli.sample",
    "edm2-verify": "jax_edm2.converter.cli.verify",
}


def called(command: tuple[str, ...], folder: str, environment: dict[str, str], stdout: str, stderr: str):
    """Run one of COMMANDS in a folder; two files, which may be one, get what it and its libraries print."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((os.devnull, stdout, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = list(command)
    _be_quiet()
    importlib.import_module(COMMANDS[command[0]]).main()


def _be_quiet():
    """Lines on how far a command is come by the clock; tests run on slow machines."""
    from jax_edm2.converter import bars

    bars.EVERY = 1e6


def watched(command: tuple[str, ...], folder: str, log: str):
    """Run one of COMMANDS in a folder; `log` gets what it printed, and last CPU seconds and MB above the start."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))  # an endless loop ends
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    peak, seconds = _peak(), time.process_time()
    leave = os._exit

    def figures():
        sys.stdout.flush()
        os.write(1, f"\n{time.process_time() - seconds:.2f} {_peak() - peak:.1f}".encode())

    def left(code):  # commands that are interrupted go this way
        figures()
        leave(code)

    os._exit = left
    try:
        called(command, folder, environment, log, log)
    finally:
        os._exit = leave
        figures()


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


def kill_at_random(function, arguments, longest, seed):
    """Kill a process that calls a function, at a random moment. Was it killed in the midst?"""
    process = start(function, *arguments)
    time.sleep(random.Random(seed).uniform(0, longest))
    process.kill()
    process.join()
    return process.exitcode != 0


def duration(function, arguments):
    """Seconds that a process takes to call a function, on this machine and with what else it is doing."""
    started = time.perf_counter()
    start(function, *arguments).join()
    return time.perf_counter() - started
