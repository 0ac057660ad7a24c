"""False alarms of edm2-verify: correct conversions of random networks, all checks, and how near any came to a limit.

    python -m tests.surveys.verify --examples 200        # about 20 s each on two cores, most of it compiling
    python -m tests.surveys.verify --examples 50 --as tpu:float32,tpu:high,tpu:default,gpu:tf32    # emulated

Configurations vary every option, seeds vary weights and inputs; nothing is at fault, so anything but `agrees` is.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from jax_edm2.converter.networks import in_memory
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.cases import Plan
from jax_edm2.converter.verify.jax_side.candidate import Candidate
from jax_edm2.converter.verify.jax_side.emulation import emulated
from jax_edm2.converter.verify.jax_side.judgement import judge
from jax_edm2.converter.verify.jax_side.precision import jax_dtype
from jax_edm2.converter.verify.outcome import Outcome
from jax_edm2.converter.verify.torch_side import oracle
from jax_edm2.converter.verify.torch_side.job import Job
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support.networks import configs, network


def verify_random(kwargs: dict, number: int, folder: Path, plan: Plan, modes: list[str]) -> Iterator[Outcome]:
    """The verdicts on the correct conversion of a random network, in each of `modes`.

    mode: a precision, or tpu:precision or gpu:precision for an emulated device.
    """
    path, truth_path = folder / "random.pkl", folder / "truth.npz"
    write_snapshot(path, network(kwargs, number))
    for mode in modes:
        device, _, precision = mode.rpartition(":")
        truth_path.unlink(missing_ok=True)
        oracle.compute(Job(str(path), str(truth_path), dataclasses.replace(plan, precision=precision)))
        with read_snapshot(path) as snapshot, Truth(truth_path) as truth, emulated(device or None):
            net = Precond(truth.config, jax_dtype(precision))
            candidate = Candidate(net, in_memory(snapshot), truth.config)
            yield judge(candidate, truth, snapshot=snapshot)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checks", default=",".join(Plan().checks), help="default: %(default)s")
    parser.add_argument("--inputs", type=int, default=1, help="batches of inputs for each network; default: 1")
    parser.add_argument("--as", dest="modes", default="float32", help="emulated: tpu:float32,gpu:tf32,...")
    args = parser.parse_args()
    modes = args.modes.split(",")
    nearest: dict[tuple[str, str], list] = defaultdict(list)
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    wolves = []
    done = set()
    started = time.perf_counter()

    def plan(number):
        return Plan(tuple(args.checks.split(",")), tuple(range(number, number + args.inputs)), steps=6)

    @seed(args.seed)
    @settings(
        max_examples=args.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kwargs=configs(), number=st.integers(0, 2**20))
    def one(kwargs, number):
        assume((str(kwargs), number) not in done)
        done.add((str(kwargs), number))
        with tempfile.TemporaryDirectory() as folder:
            outcomes = list(verify_random(kwargs, number, Path(folder), plan(number), modes))
        for mode, outcome in zip(modes, outcomes, strict=True):
            if outcome.verdict != "agrees":
                wolves.append((mode, kwargs, number))
                print(f"WOLF {mode} {outcome.verdict}: {outcome.reasons}\n     seed {number}, {kwargs}", flush=True)
            for measurements in outcome.measurements.values():
                for kind in {m.kind for m in measurements}:
                    found = [m for m in measurements if m.kind == kind]
                    nearest[mode, kind].append(max(found, key=lambda m: m.margin))
                    errors[mode, kind].append(max(m.difference.error for m in found))
        jax.clear_caches()
        print(f"\r{len(done)}", end="", file=sys.stderr, flush=True)

    with contextlib.suppress(KeyboardInterrupt):  # what is done by then is reported
        one()
    print(file=sys.stderr)
    count = len(done)
    verdicts = count * len(modes)
    print(f"{count} random networks and seeds in {time.perf_counter() - started:.0f} s: ", end="")
    print(f"{verdicts - len(wolves)} of {verdicts} verdicts agree")
    print(f"{'':27}{'median':>9}{'largest':>9}{'nearest to limit':>18}{'':4}at")
    for (mode, kind), found in nearest.items():
        worst = max(found, key=lambda m: m.margin)
        largest = sorted(errors[mode, kind])
        print(
            f"{mode:13}{kind:14}{largest[len(largest) // 2]:9.1e}{largest[-1]:9.1e}{worst.margin:17.0%}     "
            f"{worst.name}: JAX {worst.difference.error:.1e}, PyTorch {worst.torch_error:.1e}, "
            f"allowed {worst.limit:.1e}"
        )
    return 1 if wolves else 0


if __name__ == "__main__":
    sys.exit(main())
