"""Python processes of our own: they run this very code, and nothing from the folder that they are started in."""

import contextlib
import os
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax_edm2
from jax_edm2.messages import LONGEST, one_line

ROOT = Path(jax_edm2.__file__).resolve().parent.parent  # of a clone, or where packages are installed
PACKAGES = ("jax_edm2", "tests")

# `python -m` and `python -c` put the current folder first on the path: a numpy.py in it would be run. Ours are found
# where they were found in this process, whether they are installed or not.
_START = """\
import importlib.machinery, runpy, sys

class Ours:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None and name in {packages!r}:
            return importlib.machinery.PathFinder.find_spec(name, [{root!r}])

sys.meta_path.insert(0, Ours)
"""


def python(code: str) -> list[str]:
    """A command line that runs `code`, which may import our packages."""
    return [sys.executable, "-P", "-c", _START.format(packages=PACKAGES, root=str(ROOT)) + code]


def module(name: str) -> list[str]:
    """A command line that runs a module of ours as `python -m name` would."""
    return python(f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)")


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with what keeps children of children from the current folder, and `more`."""
    return {**os.environ, **more, "PYTHONSAFEPATH": "1"}


# What a computation needs to know of the machine: where its libraries are, which devices and how many threads it has.
MACHINE = (
    "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONNOUSERSITE",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY",
    "MKL_NUM_THREADS", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE",
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
)  # fmt: skip
MOST_LINES = 100  # that are shown of what a stranger's process says


def bare_environment(home: str, **more: str) -> dict[str, str]:
    """MACHINE alone of this process's environment, `home` as home and temporary folder, and `more`."""
    kept = {name: os.environ[name] for name in MACHINE if name in os.environ}
    found = {"HOME": home, "TMPDIR": home, "PYTHONSAFEPATH": "1"}
    if site.ENABLE_USER_SITE:
        found["PYTHONUSERBASE"] = site.getuserbase()  # packages of the user, which HOME no longer leads to
    if paths := [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]:
        found["PYTHONPATH"] = os.pathsep.join(paths)
    return {**kept, **more, **found}


@contextlib.contextmanager
def apart(command: list[str], **more: str) -> Iterator[subprocess.Popen]:
    """A process for a stranger's code, killed when the `with` statement ends. more: environment variables.

    It has a bare environment, an empty folder that is removed after it, and no open file but a pipe as standard input
    and one for what it says on standard error, which is shown escaped and in part. It is a process and no sandbox: it
    may read files and use the network as its user may.
    """
    with tempfile.TemporaryDirectory(prefix="edm2-apart-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            command, cwd=folder, env=bare_environment(folder, **more), text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        # A process that it leaves behind may hold the pipe open: nobody waits for that.
        relay = threading.Thread(target=_relay, args=(process.stderr,), daemon=True)
        relay.start()
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            relay.join(timeout=1)


def _relay(pipe: IO[str]):
    with pipe:
        for number, line in enumerate(iter(lambda: pipe.readline(LONGEST), "")):  # to the end, or it would wait for us
            if number < MOST_LINES:
                print(one_line(line.rstrip("\n")), file=sys.stderr, flush=True)
