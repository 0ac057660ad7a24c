"""`make readme`: runs every command in the blocks of README and docs/, and compares the output that they show.

In an empty folder that has `golden` in it, in the order of PAGES, each command once. Errors and times depend on the
processor and are masked; everything else must be equal to the character. Commands that fetch from NVIDIA's server are
run with --offline and an empty cache, where they must say what is missing. Not run: pip and make test;
`edm2-verify --golden`, which `make first-minutes` runs; and the S-size verification, whose output is shown too (ten
minutes, 11 GB).
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT

PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in (
    "converting", "verifying", "goldens", "sampling", "training", "datasets", "metrics", "library", "ecosystem",
    "stores", "speed", "pods", "internals",
))]  # fmt: skip
TEXT = "\n".join(page.read_text() for page in PAGES)
MODULES = {
    f"edm2-{name}": f"jax_edm2.converter.cli.{name}" for name in ("convert", "verify", "sample", "train", "dataset")
}
NOT_RUN = ("pip ", "make test", "edm2-verify --golden")
EXIT_USAGE = 2


def blocks() -> list[str]:
    """What is between fences without a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if not language]


def commands() -> list[str]:
    """Commands of all blocks, without comments, each once; the output that some blocks show is no command."""
    lines = [line.split("  #")[0].strip() for block in blocks() for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(("edm2-", "make ", "pip "))))


def shown_demo() -> str:
    (shown,) = (block for block in blocks() if block.startswith("$ edm2-convert"))
    return shown


def masked(text: str) -> str:
    """Text with every number that has an exponent, or that is a time, as #."""
    return re.sub(r" *\b\d+(\.\d+)?(e[-+]\d+| s\b)", " #", text)


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    words, cache = shlex.split(command), folder / "cache"
    if command.startswith("make demo"):
        words, folder = processes.module("jax_edm2.golden.demo"), ROOT  # as `make` does
    else:
        words = [*processes.module(MODULES[words[0]]), *words[1:]]
        if "--preset" in command:
            words.append("--offline")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DNNLIB_CACHE_DIR": str(cache)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def problem(command: str, done: subprocess.CompletedProcess, folder: Path) -> str | None:
    """What is wrong with what a command did."""
    if "--preset" in command:
        fine = done.returncode == EXIT_USAGE and done.stderr.count("\n") == 1 and "offline" in done.stderr
        return None if fine else f"not refused with one line: {done.stderr}"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stdout[-500:]}{done.stderr}"
    if command.startswith("make demo") and masked(done.stdout) != masked(shown_demo()):
        return f"printed\n{done.stdout}\nwhere the README shows\n{shown_demo()}"
    if "--outdir=runs/sample" in command:
        with Image.open(folder / "runs/sample/grid.png") as drawn, Image.open(ROOT / "golden/samples.png") as shown:
            apart = np.abs(np.asarray(drawn, int) - np.asarray(shown, int))
        if apart.max() > 1 or (apart > 0).mean() > 1e-3:  # another processor may round a pixel the other way
            return f"drew another picture: {(apart > 0).mean():.1%} of pixels differ, by {apart.max()} levels at most"
    return None


def main():
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "golden").symlink_to(ROOT / "golden")
        for command in commands():
            if command.startswith(NOT_RUN):
                continue
            found = problem(command, run(command, folder), folder)
            wrong += found is not None
            print(f"{'BAD' if found else 'ok '} {command}{f': {found}' if found else ''}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
