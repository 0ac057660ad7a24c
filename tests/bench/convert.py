"""edm2-convert as a whole process, beside the plain way (unpickle with torch, save with safetensors) and cp.

    python -m tests.bench.convert                          # S and XXL, random weights; needs 12 GB of disk
    python -m tests.bench.convert --sizes edm2-img512-s

Every round runs the three one after the other, so that what slows one slows all; figures are medians of the rounds,
ratios of the same round. Peak memory is the operating system's figure for the process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from jax_edm2.converter import processes


def measure(command):
    """(seconds, peak MB) of a process from start to exit."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command} failed")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def bench(name, folder, rounds):
    """Print a table of the three ways for one published size."""
    source = folder / f"{name}.pkl"
    if not source.exists():
        subprocess.run([*processes.module("jax_edm2.torch_ref.snapshot"), name, "-o", source], check=True)
    script = Path(sys.executable).with_name("edm2-convert")
    ours = [script] if script.exists() else processes.module("jax_edm2.converter.cli.convert")
    ways = {
        "edm2-convert": [*ours, source, "-o", folder / "ours.safetensors", "--force"],
        "plain way": [*processes.module("tests.support.plain"), source, folder / "plain.safetensors"],
        "cp": ["cp", source, folder / "copy.pkl"],
    }
    figures = {way: [] for way in ways}
    for _ in tqdm(range(rounds), desc=name, file=sys.stderr, leave=False, disable=not sys.stderr.isatty()):
        for way, command in ways.items():
            figures[way].append(measure(list(map(str, command))))
        for target in folder.glob("*.safetensors"):
            target.unlink()
    print(f"\n{name}, {source.stat().st_size / 1e6:.0f} MB, median of {rounds} rounds")
    print(f"{'':14}{'seconds':>9}{'of the plain way':>19}{'peak MB':>10}")
    for way, runs in figures.items():
        seconds = statistics.median(run[0] for run in runs)
        ratio = statistics.median(run[0] / plain[0] for run, plain in zip(runs, figures["plain way"], strict=True))
        print(f"{way:14}{seconds:9.2f}{ratio:19.2f}{max(run[1] for run in runs):10.0f}")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["edm2-img512-s", "edm2-img512-xxl"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where snapshots are made and kept; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.sizes:
            bench(name, folder, args.rounds)


if __name__ == "__main__":
    main()
