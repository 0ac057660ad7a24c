"""Our child processes run our code: nothing of the folder that they are started in, and strangers next to nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_edm2.converter import processes
from jax_edm2.converter.meaning import meaning_of
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.verify import oracle_process
from jax_edm2.converter.verify.jax_side import xla_flags
from jax_edm2.converter.verify.request import FromSnapshot, VerifyError, torch_device
from jax_edm2.converter.verify.throughput.job import Job
from jax_edm2.converter.verify.throughput.worker import Worker
from tests.cli.test_verify import embedding

NAMES = (
    "numpy",
    "torch",
    "tqdm",
    "jax",
    "json",
    "runpy",
    "converter",
    "jax_edm2",
    "torch_ref",
    "golden",
    "ast",
    "sitecustomize",
)

VERIFY = processes.module("jax_edm2.converter.cli.verify")


@pytest.fixture
def traps(tmp_path, monkeypatch):
    """The current folder, full of modules by the names of what our processes import. Yields who was run."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(tmp_path)
    return lambda: (tmp_path / "run").read_text() if (tmp_path / "run").exists() else ""


def test_the_traps_are_run_if_python_looks_here(traps):
    subprocess.run([sys.executable, "-c", "import tqdm"], check=True)
    assert traps() == "tqdm "


def test_processes_that_probe(traps, monkeypatch):
    """XLA's flags, PyTorch's devices, and the parser of sources."""
    monkeypatch.setenv("XLA_FLAGS", "")
    assert xla_flags.set_xla_flags(["--xla_cpu_enable_fast_math=false"]) == []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: True)  # of a GPU's device
        assert torch_device("auto") in ("cpu", "cuda")
    assert list(meaning_of("def f(): pass").parts) == ["f", "the module's other statements"]
    assert traps() == ""


def test_processes_that_are_timed(traps, digits_pkl):
    with Worker("torch", Job(str(digits_pkl), 1, "float32", "cpu")) as worker:
        assert "peak_bytes" in worker.ask("memory")
    assert traps() == ""


def test_edm2_verify(traps, digits_pkl):
    command = [
        *VERIFY,
        digits_pkl,
        "--checks",
        "parameters",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AGREES" in done.stdout
    assert traps() == ""


def test_every_process_of_ours_is_started_there():
    """Whoever starts Python without converter.processes starts it with the current folder on its path."""
    others = re.compile(r"sys\.executable|\bmultiprocessing\b|os\.(?:exec|spawn|popen|system)|shell=")
    for folder in ("converter", "jax_edm2", "torch_ref", "golden"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != ROOT / "converter" / "processes.py":
                assert others.findall(path.read_text()) == [], path


# A stranger's code

SPY = """
import json, os, sys
json.dump({{
    "environment": dict(os.environ),
    "folder": os.getcwd(), "files": os.listdir(),
    "open": sorted(os.readlink(f"/proc/self/fd/{{n}}").split(":")[0] for n in os.listdir("/proc/self/fd")
                   if os.path.lexists(f"/proc/self/fd/{{n}}")),
    "session": os.getsid(0) == os.getpid(),
}}, open({output!r}, "w"))
print("on standard output")
print("\\x1b[2Jescaped\\u202e", file=sys.stderr)
for number in range(500):
    print(number, "and more", file=sys.stderr)
"""
SECRETS = {"AWS_SECRET_ACCESS_KEY": "s3cret-key", "HF_TOKEN": "s3cret-token", "SSH_AUTH_SOCK": "/s3cret/agent"}


@pytest.fixture(scope="module")
def spied(tmp_path_factory):
    """(process, what the embedded source saw) of a verification that runs it."""
    folder = tmp_path_factory.mktemp("spied")
    seen = folder / "seen.json"
    embedding(folder / "spy.pkl", lambda source: source + SPY.format(output=str(seen)))
    command = [
        *VERIFY,
        "spy.pkl",
        "--checks",
        "parameters",
        "--device",
        "cpu",
    ]
    command += ["--reference", "embedded", "--trust-embedded-code", "--save-truth", "truth.npz"]
    environment = {**os.environ, **SECRETS, "OMP_NUM_THREADS": "1", "HOME": str(folder), "PYTHONPATH": f".{os.pathsep}"}
    with open(folder / "spy.pkl") as secret:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, pass_fds=[secret.fileno()]
        )
    assert done.returncode == 0, done.stderr
    assert (folder / "truth.npz").exists()
    return done, json.loads(seen.read_text()), folder


def test_it_sees_next_to_no_environment(spied):
    _, seen, folder = spied
    environment = seen["environment"]
    assert "s3cret" not in json.dumps(environment)
    ours = {"OMP_WAIT_POLICY", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    set_anew = {"HOME", "TMPDIR", "PYTHONSAFEPATH", "PYTHONUSERBASE", "PYTHONPATH", "CUBLAS_WORKSPACE_CONFIG"}
    by_libraries = {name for name in environment if name.startswith(("TORCH", "KMP_", "LC_"))}
    assert set(environment) <= {*processes.MACHINE, *ours, *set_anew, *by_libraries}
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONPATH"] == str(folder)  # absolute, and not the folder that it runs in


def test_its_folder_is_empty_and_is_removed(spied):
    _, seen, folder = spied
    assert [name for name in seen["files"] if not name.startswith("torchinductor")] == []  # which torch makes
    assert seen["folder"] == seen["environment"]["HOME"] == seen["environment"]["TMPDIR"] != str(folder)
    assert not Path(seen["folder"]).exists()


def test_it_inherits_no_file(spied):
    _, seen, _ = spied
    places = [place for place in seen["open"] if not place.startswith(("/proc/", "anon_inode"))]
    mine = [place for place in places if place.endswith("spy.pkl") or "truth.npz" in place]
    assert set(places) - set(mine) <= {"pipe", "/dev/null"}
    assert sum(place.endswith("spy.pkl") for place in places) == 1  # which it reads itself
    assert seen["session"]  # and has no terminal


def test_what_it_says_is_escaped_and_bounded(spied):
    done, _, _ = spied
    assert "on standard output" not in done.stdout
    assert "\\x1b[2Jescaped\\u202e" in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") <= processes.MOST_LINES + 1


def test_a_process_that_dies_at_once_is_no_success(digits_pkl, tmp_path, monkeypatch):
    """As when PyTorch cannot be imported: nobody reads what it is asked for."""
    monkeypatch.setattr(processes, "module", lambda name: ["sh", "-c", "exec <&-; kill -KILL $$"])
    monkeypatch.setattr(oracle_process.Job, "to_json", lambda self: " " * 2**20)  # more than a pipe takes
    for reference in ("torch_ref", "embedded"):
        with pytest.raises(VerifyError, match="was ended by signal 9"):
            oracle_process.make_truth(FromSnapshot(digits_pkl, reference=reference), tmp_path / "truth.npz")
