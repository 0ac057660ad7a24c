"""How much memory and time edm2-verify takes for a published size, with random weights.

    python -m tests.bench.verify_memory                          # XXL, all checks but gradients; 14 GB of disk
    python -m tests.bench.verify_memory edm2-img512-s --checks parameters,forward

Memory is the sum of the proportional set sizes (PSS) of the command's processes, every second: what two of them
share is counted once. Files in the page cache belong to nobody.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jax_edm2.converter import processes

EVERY = 1.0  # seconds


def measure(command: list[str]) -> tuple[int, float, float, float]:
    """(exit code, seconds, peak GB of the process and its children, peak GB of the largest of them)."""
    start, peak, largest = time.perf_counter(), 0.0, 0.0
    process = subprocess.Popen(command, env=processes.environment())
    while process.poll() is None:
        sizes = [_proportional(pid) for pid in _family(process.pid)]
        peak, largest = max(peak, sum(sizes)), max([largest, *sizes])
        time.sleep(EVERY)
    return process.returncode, time.perf_counter() - start, peak, largest


def _family(pid: int) -> list[int]:
    """A process, its children, and theirs."""
    children = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, path.read_text().split())
    return [pid, *(each for child in children for each in _family(child))]


def _proportional(pid: int) -> float:
    """GB; 0 of a process that has ended."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
            return int(found[1]) * 1024 / 1e9
    return 0.0


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench.verify_memory", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="edm2-img512-xxl", help="default: %(default)s")
    parser.add_argument("--checks", default="parameters,forward,trajectory", help="default: %(default)s")
    parser.add_argument("--steps", default="1", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where snapshots are made and kept; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        snapshot = folder / f"{args.name}.pkl"
        if not snapshot.exists():
            subprocess.run([sys.executable, "-m", "torch_ref.snapshot", args.name, "-o", snapshot], check=True)
        arguments = [str(snapshot), "--device", "cpu", "--checks", args.checks, "--steps", args.steps]
        code, seconds, peak, largest = measure([*processes.module("jax_edm2.converter.cli.verify"), *arguments])
    print(f"\nedm2-verify {' '.join(arguments)}: exit code {code}, {seconds:.0f} s")
    print(f"peak memory {peak:.1f} GB, of the larger process {largest:.1f} GB")
    return code


if __name__ == "__main__":
    sys.exit(main())
