"""False alarms of edm2-verify: correct conversions of random networks, all checks, and how near any came to a limit.

    python -m tests.surveys.verify --examples 200        # about 20 s each on two cores, most of it compiling

Configurations vary every option, seeds vary weights and inputs; nothing is at fault, so anything but `agrees` is.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from jax_edm2.converter.networks import in_memory
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.cases import Plan
from jax_edm2.converter.verify.jax_side.candidate import Candidate
from jax_edm2.converter.verify.jax_side.judgement import judge
from jax_edm2.converter.verify.outcome import Outcome
from jax_edm2.converter.verify.torch_side import oracle
from jax_edm2.converter.verify.torch_side.job import Job
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support.networks import configs, network


def verify_random(kwargs: dict, number: int, folder: Path, plan: Plan) -> Outcome:
    """The verdict on the correct conversion of a random network."""
    path, truth_path = folder / "random.pkl", folder / "truth.npz"
    write_snapshot(path, network(kwargs, number))
    truth_path.unlink(missing_ok=True)
    oracle.compute(Job(str(path), str(truth_path), plan))
    with read_snapshot(path) as snapshot, Truth(truth_path) as truth:
        candidate = Candidate(Precond(truth.config), in_memory(snapshot), truth.config)
        return judge(candidate, truth, snapshot=snapshot)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checks", default=",".join(Plan().checks), help="default: %(default)s")
    parser.add_argument("--inputs", type=int, default=1, help="batches of inputs for each network; default: 1")
    args = parser.parse_args()
    nearest = defaultdict(list)
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
            outcome = verify_random(kwargs, number, Path(folder), plan(number))
        if outcome.verdict != "agrees":
            wolves.append((kwargs, number, outcome.verdict, outcome.reasons))
            print(f"WOLF {outcome.verdict}: {outcome.reasons}\n     seed {number}, {kwargs}", flush=True)
        for measurements in outcome.measurements.values():
            for kind in {m.kind for m in measurements}:
                nearest[kind].append(max((m for m in measurements if m.kind == kind), key=lambda m: m.margin))
        jax.clear_caches()
        print(f"\r{len(nearest['isolated'])}", end="", file=sys.stderr, flush=True)

    with contextlib.suppress(KeyboardInterrupt):  # what is done by then is reported
        one()
    print(file=sys.stderr)
    count = len(done)
    print(f"{count} random networks and seeds in {time.perf_counter() - started:.0f} s: {count - len(wolves)} agree")
    print(f"{'':14}{'largest error':>14}{'PyTorch there':>15}{'nearest to limit':>18}{'':4}at")
    for kind, found in nearest.items():
        largest = max(found, key=lambda m: m.difference.error)
        worst = max(found, key=lambda m: m.margin)
        print(
            f"{kind:14}{largest.difference.error:14.1e}{largest.torch_error:15.1e}{worst.margin:17.0%}     "
            f"{worst.name}: JAX {worst.difference.error:.1e}, PyTorch {worst.torch_error:.1e}, "
            f"allowed {worst.limit:.1e}"
        )
    return 1 if wolves else 0


if __name__ == "__main__":
    sys.exit(main())
