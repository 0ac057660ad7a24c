"""Compiled programs are kept between runs of the commands."""

import os
import subprocess
from pathlib import Path

from jax_edm2.converter import processes
from jax_edm2.converter.compiled import _prune
from jax_edm2.converter.processes import ROOT

CODE = """
from jax_edm2.converter.devices import start
start("cpu")
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(jax.numpy.ones(3))
print(jax.config.values["jax_compilation_cache_dir"])
"""


def run(cache, **more):
    environment = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(processes.python(CODE), env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_they_are_kept(tmp_path):
    folder = Path(run(tmp_path))
    assert folder.parent == tmp_path / "edm2-jax" / "compiled"
    kept = sorted(path.name for path in folder.iterdir())
    assert kept
    assert run(tmp_path) == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == kept  # found again


def test_what_the_user_says_goes_first(tmp_path):
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "edm2-jax").touch()
    assert run(tmp_path) == "None"


def test_the_oldest_go(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (100 - age, 100 - age))
    _prune(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
