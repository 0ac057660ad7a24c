"""A training state of S size (5.6 GB), there and back: whole processes, beside cp of the same file.

python -m tests.bench.states             # needs 20 GB of disk, and 12 GB of memory to make the state
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jax_edm2.converter import processes
from tests.bench.phema import measure


def make(size: str, path: str):
    from jax_edm2.torch_ref.snapshot import published_config
    from tests.support.states import Trained

    Trained(published_config(size)[0]).steps(1).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="edm2-img512-s")
    parser.add_argument(
        "--make", help=argparse.SUPPRESS
    )  # in a process of its own: memory is measured above this one's
    args = parser.parse_args()
    if args.make:
        make(args.size, args.make)
        return
    convert = processes.module("jax_edm2.converter.cli.convert")
    with tempfile.TemporaryDirectory(prefix="edm2-states-") as temporary:
        folder = Path(temporary)
        state, whole = folder / "training-state-0000001.pt", folder / "whole"
        subprocess.run([sys.executable, "-m", __spec__.name, "--size", args.size, "--make", state], check=True)
        print(f"{args.size}, {state.stat().st_size / 1e6:,.0f} MB")
        ways = {
            "cp": ["cp", state, folder / "copy"],
            "to safetensors": [*convert, state, "-o", folder / "whole.safetensors"],
            "one network": [*convert, state, "--weights", "ema-0.100", "-o", folder / "net.safetensors"],
            "to orbax": [*convert, state, "-o", whole, "--format", "orbax"],
            "orbax to .pt": [*convert, whole, "-o", folder / "back.pt"],
        }
        for name, command in ways.items():
            seconds, peak = measure(command)
            print(f"{name:15} {seconds:7.1f} s {peak:7,.0f} MB", flush=True)
            for made in ("copy", "whole.safetensors", "net.safetensors", "back.pt"):
                (folder / made).unlink(missing_ok=True)
        shutil.rmtree(whole)


if __name__ == "__main__":
    main()
