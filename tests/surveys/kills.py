"""Trainings that are killed at random moments and started again: they end bit for bit as one that was never stopped.

python -m tests.surveys.kills                  # 50 kills on one device and 50 on four

And conversions (100) and averages (50): outputs are old or new, and who goes on gets what nobody interrupted.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jax_edm2.checkpoint import read_record
from jax_edm2.converter.train.checkpoints import Checkpoints
from tests.support import children, killed
from tests.support.datasets import small_dataset
from tests.support.trainings import BATCH

STEPS = 200
EVERY = 20 * BATCH  # images between checkpoints


def digest(outdir: Path) -> str:
    """Of the last checkpoint: of all parameters, moments and averages."""
    newest = Checkpoints(outdir, 0, print).found()[0]
    assert newest.name == f"training-state-{STEPS * BATCH:010d}", newest
    return read_record(newest).digest


def survey(folder: Path, devices: int, kills: int) -> int:
    """How many trainings ended otherwise."""
    data, arguments = small_dataset(folder / "data.zip"), (STEPS * BATCH, devices, EVERY)
    first = folder / f"{devices}-whole"
    for outdir in (folder / f"{devices}-compiled", first):  # the second one compiles nothing
        seconds = children.duration(children.train, (str(data), str(outdir), *arguments))
    expected, killed, wrong, trainings, starts = digest(first), 0, 0, 0, 0
    print(f"{devices} devices: {STEPS} steps without a stop take {seconds:.1f} s", flush=True)
    while killed < kills:
        outdir, here = folder / f"{devices}-{trainings}", 0
        while True:
            starts += 1
            if not children.kill_at_random(
                children.train, (str(data), str(outdir), *arguments), seconds, random.Random(starts).random()
            ):
                break
            killed, here = killed + 1, here + 1
        same = digest(outdir) == expected
        trainings += 1
        left = [path.name for path in outdir.iterdir() if path.name.startswith(".")]
        found = "the same" if same else "OTHERWISE"
        print(f"  killed {here} times: {found}{f', and left {left}' if left else ''}", flush=True)
        wrong += bool(left) or not same
        shutil.rmtree(outdir)
    print(f"{devices} devices: {killed} kills in {trainings} trainings, {wrong} of which ended otherwise", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--devices", default="1,4")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("conversions: {}, {} in the midst, {} left something".format(*killed.conversions(Path(folder), 100)))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as snapshots:
        resumed = killed.reconstructions(killed.write_snapshots(Path(snapshots)), Path(folder), 50)
        print(f"averages: 50 kills, {resumed} went on in the midst", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wrong = sum(survey(Path(folder), int(devices), args.kills) for devices in args.devices.split(","))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
