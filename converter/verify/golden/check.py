"""Goldens: recorded truths that a machine is held to with JAX alone, each a truth file reduced to what matters.

A golden is a truth file (`converter.verify.truth`) of a network that anybody can have: one of `golden/networks.py`,
or the digits. Of the taps it keeps the outputs of the blocks and of what is around them, which are measured in the
network compiled as a whole; of gradients the norm and random projections (`projection`). Its facts have, under
`golden`:

    network     a name in golden/networks.py, or `digits`
    measured    {accumulated, compiled, gradient, trajectory: the largest error that was seen, of JAX on the machines
                listed, or of PyTorch, in float32 against the truth}
    on          the machines and versions that the errors were seen on
    tolerance   the fields of a Tolerance: each floor is MARGIN times the error that was measured (see `verdict`)
    normalised  digest of the weights after normalisation in float64, rounded to float32
"""

import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_edm2 import strict_json

from ...names import jax_path
from ..outcome import Outcome, Progress
from ..truth import Truth
from ..verdict import DISAGREES
from .networks import DATA, GoldenError, network_config, network_tensors, normalised_digest

FOLDER = DATA / "truths"
MOST_GOLDENS = 100
MOST_BYTES = 64 * 2**20  # of a golden; ours have 80 to 330 KB
COMPILING = 2  # at once


@dataclass(frozen=True)
class Exact:
    """Something that is not a network: how far it is from its record, and how far it may be."""

    name: str
    error: float
    limit: float
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        return self.problem is None and self.error <= self.limit


def find_goldens(folder: Path = FOLDER) -> list[Path]:
    """A folder's goldens, every array of them held to its digest. Needs no JAX. Raises: GoldenError, TruthError."""
    try:
        with os.scandir(folder) as entries:
            found = (Path(entry.path) for entry in entries if entry.name.endswith(".npz"))
            paths = sorted(itertools.islice(found, MOST_GOLDENS + 1))
    except OSError as error:
        raise GoldenError(f"{folder}: {error.strerror}") from None
    if not paths:
        raise GoldenError(f"{folder}: has no goldens (*.npz); make golden records them")
    if len(paths) > MOST_GOLDENS:
        raise GoldenError(f"{folder}: has more than {MOST_GOLDENS} goldens")
    networks: dict[str, Path] = {}
    for path in paths:
        with Truth(path) as truth:
            network = _network(truth)
            if network in networks:
                raise GoldenError(f"{path}: is of the same network as {networks[network].name}")
            networks[network] = path
            for key in sorted(truth.keys()):
                _ = truth[key]
    return paths


def _network(truth: Truth) -> str:
    """The name of a golden's network, which is the one that it says. Raises: GoldenError."""
    if truth.golden is None:
        raise GoldenError(f"{truth.path}: is a truth file and no golden; use it with --truth")
    if truth.path.stat().st_size > MOST_BYTES:
        raise GoldenError(f"{truth.path}: has more than {MOST_BYTES / 1e6:.0f} MB, which no golden has")
    network = truth.golden.network
    if truth.config != network_config(network):
        raise GoldenError(f"{truth.path}: has another configuration than the network {network!a:.60}")
    return network


def hold_to(paths: Iterable[Path], progress: Progress = lambda stage: None) -> tuple[list[Outcome], list[Exact]]:
    """Hold this machine to goldens (see `find_goldens`), in strict float32, and to the records beside them.

    Raises: ConverterError.
    """

    def check(path: Path) -> Outcome:
        with Truth(path) as truth:
            progress(_network(truth))
            return check_golden(truth)

    with ThreadPoolExecutor(COMPILING) as pool:  # nearly all of the time is XLA's, which compiles on one core
        outcomes = list(pool.map(check, paths))
    return outcomes, check_records()


def check_golden(truth: Truth) -> Outcome:
    """Hold this machine to one golden."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from jax_edm2.network import Precond

    from ..jax_side.candidate import Candidate
    from ..jax_side.judgement import judge

    assert truth.golden is not None
    tensors = network_tensors(truth.golden.network)
    leaves = {jax_path(name): jnp.asarray(value) for name, value in tensors.items()}
    candidate = Candidate(Precond(truth.config), unflatten_dict(leaves, sep="/"), truth.config)
    outcome = judge(candidate, truth)
    if normalised_digest(tensors) != truth.golden.normalised:
        outcome.verdict = DISAGREES
        outcome.reasons.append("the weights, normalised in float64, have another digest than was recorded")
    return outcome


def check_records() -> list[Exact]:
    """The records beside the networks: torch's random streams, and the coefficients of EMA profiles."""
    from . import ema, torch_streams

    checks = []
    for device, record in _record(torch_streams.RECORD).items():
        error, wrong = torch_streams.distance(device, record)
        problem = f"{wrong} labels differ" if wrong else None
        checks.append(Exact(f"torch's random stream, {device}", error, torch_streams.bound(device), problem))
    errors = ema.distance(_record(ema.RECORD))
    names = ("EMA exponents", "EMA averages", "post-hoc EMA coefficients")
    checks += [Exact(*each) for each in zip(names, errors, ema.BOUNDS, strict=True)]
    return checks


def _record(path: Path) -> Any:
    try:
        return strict_json.loads(path.read_bytes())
    except (OSError, strict_json.JSONError) as error:
        raise GoldenError(f"{path}: {error}; make golden records it") from None
