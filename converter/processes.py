"""Python processes of our own: they run this very code, and nothing from the folder that they are started in."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("converter", "jax_edm2", "torch_ref")

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
