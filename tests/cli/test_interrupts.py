"""Ctrl-C while a command is still importing what it is made of: exit code 130, a line, and no traceback."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jax_edm2.converter.processes import ROOT

START = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it

class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == {{module!r}}:
            sys.meta_path.remove(Interrupting)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting)
"""
ENTRY = START + "from jax_edm2.converter.cli.entry import {command}; sys.argv = ['edm2', *sys.argv[1:]]; {command}()"
ARGUMENTS = {
    "convert": ["golden/digits.pkl", "--dry-run"],
    "sample": ["--net=golden/digits.pkl", "--outdir={folder}", "--steps=1", "--device=cpu"],
    "verify": ["golden/digits.pkl", "--device=cpu"],
}


def start(code, arguments, folder, **more):
    arguments = [argument.format(folder=folder) for argument in arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, **pipes)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("convert", "click"),
        ("convert", "click.core"),
        ("convert", "jax_edm2.converter.cli.run"),
        ("convert", "jax_edm2.converter.formats.pickle_reader"),
        ("convert", "jax_edm2.config"),
        ("convert", "json.scanner"),
        ("sample", "click"),
        ("sample", "jax_edm2.converter.networks"),
        ("sample", "jax"),
        ("sample", "jax._src.core"),
        ("sample", "flax.linen"),
        ("verify", "jax_edm2.converter.verify.run"),
    ],
)
def test_at_an_import(command, module, tmp_path):
    process = start(ENTRY.format(command=command, module=module), ARGUMENTS[command], tmp_path)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr.strip()) == (130, "", f"edm2-{command}: interrupted")


def test_as_a_module(tmp_path):
    """`python -m jax_edm2.converter.cli.convert`: from the first line of our package on."""
    code = START.format(module="jax_edm2.converter.cli.run") + (
        "import runpy; sys.argv = ['-m', *sys.argv[1:]];"
        "sys.orig_argv = ['python', '-m', 'jax_edm2.converter.cli.convert'];"
        "runpy.run_module('jax_edm2.converter.cli.convert', run_name='__main__', alter_sys=True)"
    )
    process = start(code, ARGUMENTS["convert"], tmp_path)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (130, "", "edm2-convert: interrupted\n")


def test_at_random_moments(tmp_path):
    """From the first instruction of ours to the last, and while Python is taken down."""
    code = START.format(module="none") + (
        "from jax_edm2.converter.cli import entry;"
        "os.write(1, b'!'); sys.argv = ['edm2', *sys.argv[1:]]; entry.convert()"
    )
    rng = np.random.default_rng(0)
    codes = []
    for _ in range(12):
        process = start(code, ARGUMENTS["convert"], tmp_path)
        assert process.stdout.read(1) == "!"
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
        # Before the command is known that was called, it is edm2.
        assert stderr.strip() in ("", "edm2: interrupted", "edm2-convert: interrupted")
        codes.append(process.returncode)
    assert set(codes) <= {0, 130, -signal.SIGINT}  # the last when Python has taken its own handlers down
    assert 130 in codes


def test_what_python_cannot_raise_comes_again(tmp_path):
    """In a callback of the garbage collector, say: Python would print a traceback and go on."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import gc, signal, time, click
from jax_edm2.converter.cli.run import run
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupted(*_):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)

@click.command(name="edm2-test")
def command():
    gc.callbacks.append(interrupted)
    gc.collect()
    time.sleep(60)

run(command)
"""
    process = start(code, [], tmp_path)
    _, stderr = process.communicate()
    assert (process.returncode, stderr.strip()) == (130, "edm2-test: interrupted")


def test_where_it_is_ignored_it_stays_so(tmp_path):
    """As in what a shell runs in the background."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jax_edm2.converter.cli.entry import convert; convert()"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which children inherit
    try:
        process = start(code, ARGUMENTS["convert"], tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.endswith("nothing written\n")
