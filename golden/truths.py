"""Records the goldens: golden/truths/NETWORK.npz, what `edm2-verify --golden` holds a machine to.

    python -m golden.truths                     # make them again, and show how they differ from what is committed
    python -m golden.truths --check             # the same, and write nothing

PyTorch computes each truth in float64 (`torch_side.oracle`); what is not needed is left out; JAX is measured against
it, and so comes the tolerance. Names, shapes and digests must not change; numbers may by what float64 rounds.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from jax_edm2.converter.verify.cases import Plan
from jax_edm2.converter.verify.facts import GOLDEN, Golden
from jax_edm2.converter.verify.golden.check import FOLDER, check_golden
from jax_edm2.converter.verify.golden.networks import DIGITS, NETWORKS, network_tensors, normalised_digest
from jax_edm2.converter.verify.outcome import Outcome
from jax_edm2.converter.verify.taps import taps
from jax_edm2.converter.verify.torch_side import oracle
from jax_edm2.converter.verify.torch_side.job import Job
from jax_edm2.converter.verify.truth import Truth, TruthError, TruthWriter, projection, reduced
from jax_edm2.converter.verify.verdict import KINDS, LARGEST_MEASURED, tolerance_of
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot

PLAN = Plan(GOLDEN, sigmas=(0.3, 20.0), batch=2, steps=8)
NAMES = [*NETWORKS, "digits"]
STEPS = ("step/", "ema/")
PAIR = ("error", "condition")
CLOSE = 1e-9  # relative, between two computations of a truth; measured between 1 and 2 threads: 3e-16


def record(name, folder):
    """Make one golden in `folder`."""
    snapshot, full, path = DIGITS, folder / "full.npz", folder / file_name(name)
    tensors = network_tensors(name)
    if name != "digits":
        snapshot = folder / f"{name}.pkl"
        net = Precond(**NETWORKS[name])
        net.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
        write_snapshot(snapshot, net, dtype=torch.float32)
    oracle.compute(Job(str(snapshot), str(full), PLAN))
    with Truth(full) as truth:
        digest = normalised_digest(tensors)
        write(truth, path, golden_of(name, digest, dict.fromkeys(KINDS, LARGEST_MEASURED), [{}]))  # only to be measured
        with Truth(path) as golden:
            outcome = check_golden(golden)
        path.unlink()
        measured = largest_errors(outcome)
        on = [outcome.environment["JAX"], outcome.environment["PyTorch"]]
        write(truth, path, golden_of(name, digest, measured, on))
    full.unlink()


def file_name(name):
    return f"{name.replace(' ', '-')}.npz"


def largest_errors(outcome: Outcome):
    """Of JAX here, and of PyTorch, by kind, to two digits."""
    found = [m for each in outcome.measurements.values() for m in each]
    return {
        kind: float(f"{max(max(m.difference.error, m.torch_error) for m in found if m.kind == kind):.1e}")
        for kind in KINDS
    }


def golden_of(network: str, digest: str, measured: dict[str, float], on: list[dict]) -> Golden:
    return Golden(network, digest, measured, on, tolerance_of(measured))


def write(truth: Truth, path: Path, golden: Golden):
    """A reduced copy of a truth file."""
    kept = {str(tap) for tap in {tap.scope: tap for tap in taps(truth.config)}.values()}  # what each scope ends with
    gradients = {key: found for key, found in truth.facts.errors["gradients"].items() if not key.startswith(STEPS)}
    training = dict(reduced((key, truth[key]) for key in truth.facts.errors["training"]))
    errors = {
        "gradients": gradients,
        "trajectory": truth.facts.errors["trajectory"],
        "training": largest(truth, training),
    }
    with TruthWriter(path) as file:
        for case in (f"seed{seed}" for seed in PLAN.seeds):
            found = truth.facts.errors[case]
            errors[case] = {
                "accumulated": {tap: error for tap, error in found["accumulated"].items() if tap in kept},
                "outputs": found["outputs"],
            }
            for name in ("denoised", "logvar", *sorted(kept)):
                file[f"{case}/{name}"] = truth[f"{case}/{name}"]
        file["trajectory"], file["loss"] = truth["trajectory"], truth["loss"]
        for key in gradients:
            if key != "loss":
                file[key] = projection(key.removeprefix("gradient/"), truth[key])
        for key, value in training.items():
            file[key] = value
        snapshot = {**truth.facts.snapshot, "sha256": None}  # the file's, which is made anew every time
        facts = dataclasses.replace(truth.facts, golden=golden, errors=errors, amplification={}, snapshot=snapshot)
        file.finish(facts)


def largest(truth: Truth, keys):
    """Of all parameters, the largest error and condition number of each part of the training."""
    found = truth.facts.errors["training"].items()
    return {
        key: {each: max(pair[each] for name, pair in found if f"{name}/".startswith(f"{key}/")) for each in PAIR}
        for key in keys
    }


def compare(old: Path, new: Path):
    """How a golden differs from the one that is committed, a line each. Machines, versions and errors may differ."""
    if not old.exists():
        yield f"{old}: is new"
        return
    try:
        before = Truth(old)
    except TruthError as error:
        yield f"{error}"
        return
    with before, Truth(new) as after:
        for name in ("config", "plan", "parameters", "reference"):
            was, now = (each.facts.to_json()[name] for each in (before, after))
            if was != now:
                yield f"{old}: {name} was {str(was)[:100]}, is {str(now)[:100]}"
        for name in ("network", "normalised"):
            was, now = (getattr(each.golden, name) for each in (before, after))
            if was != now:
                yield f"{old}: {name} was {was}, is {now}"
        for key in sorted(before.keys() | after.keys()):
            if key not in after or key not in before:
                yield f"{old}: {key} is {'gone' if key in before else 'new'}"
            elif before[key].shape != after[key].shape:
                yield f"{old}: {key} was {before[key].shape}, is {after[key].shape}"
            elif not (apart := np.linalg.norm(before[key] - after[key])) <= CLOSE * np.linalg.norm(before[key]):
                yield f"{old}: {key} differs by {apart / np.linalg.norm(before[key]):.1e}"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.truths", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything differs")
    args = parser.parse_args(argv)
    changed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in NAMES:
            record(name, folder)
            new, old = folder / file_name(name), FOLDER / file_name(name)
            lines = list(compare(old, new))
            changed |= bool(lines)
            print("\n".join(lines) or f"{old}: the same", flush=True)
            if not args.check:
                FOLDER.mkdir(exist_ok=True)
                old.write_bytes(new.read_bytes())
    return 1 if changed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
