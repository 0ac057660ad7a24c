"""edm2-phema as a whole process, beside cat of the same files, and NVlabs' reconstruct_phema.py from a clone.

    python -m tests.bench.phema                                   # 16 XS-size snapshots; needs 12 GB of disk
    python -m tests.bench.phema --nvlabs DIR --size edm2-img512-s

The three run one after the other. The snapshots are copies of one with random weights: speed does not depend on values.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jax_edm2.converter import processes

STEP = 64 * 1024 * 1024  # images between snapshots
ONE, MANY = "0.150", "0.040,0.045,...,0.190"  # 1 profile and 31


def measure(command, cwd=None):
    """(seconds, peak MB) of a process; the peak includes what the one that starts it has."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=cwd)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="edm2-img512-xs")
    parser.add_argument("--snapshots", type=int, default=16)
    parser.add_argument("--nvlabs", type=Path, help="a clone of NVlabs/edm2")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edm2-phema-") as temporary:
        folder = Path(temporary)
        raw = folder / "raw"
        raw.mkdir()
        original = folder / "one.pkl"
        subprocess.run([*processes.module("jax_edm2.torch_ref.snapshot"), args.size, "-o", original], check=True)
        for number in range(args.snapshots):
            kimg, std = (number // 2 + 1) * STEP // 1000, (0.05, 0.1)[number % 2]
            shutil.copy(original, raw / f"{args.size}-{kimg:07d}-{std:.3f}.pkl")
        size = sum(path.stat().st_size for path in raw.iterdir()) / 1e6
        print(f"{args.snapshots} snapshots of {args.size}, {size:,.0f} MB")
        flags = [f"--indir={raw}", f"--outdir={folder / 'out'}"]
        ways = {
            "edm2-phema": [*processes.module("jax_edm2.converter.cli.phema"), *flags],
            "cat": ["sh", "-c", f"cat {raw}/* > /dev/null", "cat"],
        }
        if args.nvlabs:
            ways["NVlabs"] = [sys.executable, "reconstruct_phema.py", *flags]
        for what, stds in (("1 profile", ONE), ("31 profiles", MANY)):
            for name, command in ways.items():
                seconds, peak = measure([*command, f"--outstd={stds}"], args.nvlabs if name == "NVlabs" else None)
                print(f"{what:12} {name:11} {seconds:7.1f} s {size / seconds:8,.0f} MB/s {peak:7,.0f} MB", flush=True)
                shutil.rmtree(folder / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
