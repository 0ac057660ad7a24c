"""What pytest gets: the goldens as items of anybody's test run, and nothing where nobody asks."""

import os
import shutil
import subprocess

import pytest

from jax_edm2.converter import processes
from jax_edm2.converter.verify.golden.check import FOLDER

PLUGIN = "jax_edm2.converter.verify.pytest_plugin"
TEST = "def test_of_theirs():\n    pass\n"


@pytest.fixture
def theirs(tmp_path):
    """A project of one test, and a folder with one golden."""
    (tmp_path / "test_theirs.py").write_text(TEST)
    (tmp_path / "goldens").mkdir()
    shutil.copy(FOLDER / "one-level.npz", tmp_path / "goldens")
    return tmp_path


def run(folder, *arguments):
    code = f"import pytest, sys; sys.exit(pytest.main(sys.argv[1:], plugins=['{PLUGIN}']))"
    words = [*processes.python(code), "-p", "no:edm2-jax", "-p", "no:cacheprovider", *map(str, arguments)]
    found = subprocess.run(words, cwd=folder, env={**os.environ}, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


def test_goldens_are_run_when_they_are_asked_for(theirs):
    code, said = run(theirs, "-v", "-W", "error", "--edm2-golden-dir", "goldens")
    assert code == 0, said
    assert "edm2-golden[one-level] PASSED" in said
    assert "edm2-golden[records] PASSED" in said
    assert "3 passed" in said


def test_all_of_ours_are_found_and_k_chooses(theirs):
    code, said = run(theirs, "--collect-only", "-q", "--edm2-golden", "-k", "edm2-golden")
    assert code == 0, said
    assert said.count("::edm2-golden[") == len(list(FOLDER.glob("*.npz"))) + 1
    assert "1 deselected" in said


def test_a_golden_that_fails_says_what_edm2_verify_says(theirs):
    (theirs / "conftest.py").write_text(
        "import jax_edm2.network as network\nsilu = network.mp_silu\nnetwork.mp_silu = lambda x: silu(x) * 1.001\n"
    )
    code, said = run(theirs, "--edm2-golden-dir", "goldens")
    assert code == 1, said
    assert "DISAGREES: JAX does not compute what PyTorch computes." in said
    assert "Traceback" not in said


def test_a_folder_without_goldens(theirs):
    code, said = run(theirs, "--edm2-golden-dir", "nowhere")
    assert code == 4
    assert "nowhere: No such file or directory" in said


def test_who_does_not_ask_pays_nothing(theirs):
    """Not even for numpy."""
    (theirs / "test_theirs.py").write_text(
        "import sys\ndef test():\n    assert not {'jax', 'flax', 'numpy', 'torch', 'click'} & {*sys.modules}\n"
    )
    code, said = run(theirs, "-p", "no:jaxtyping")
    assert code == 0, said
    assert "1 passed" in said
