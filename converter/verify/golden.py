"""Goldens: recorded truths that a machine is held to with JAX alone, each a truth file that was made thin.

A golden is a truth file (`converter.verify.truth`) of a network that anybody can have: one of `golden.networks`, or the
digits. Of the taps it keeps the outputs of the blocks and of what is around them, which are measured in the network
compiled as a whole; of gradients the norm and random projections (`projection`). Its facts have, under `golden`:

    network     a name of golden.networks, or `digits`
    measured    {accumulated, compiled, gradient, trajectory: the largest error that was seen, of JAX on the machines
                listed, or of PyTorch, in float32 against the truth}
    on          the machines and versions that the errors were seen on
    tolerance   the fields of a Tolerance: each floor is MARGIN times the error that was measured (see `verdict`)
    normalised  digest of the weights after normalisation in float64, rounded to float32
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import golden
from converter.errors import ConverterError
from converter.names import jax_path, torch_name
from converter.verify import report
from converter.verify.report import number, wrap
from converter.verify.run import Options, Outcome, judge
from converter.verify.truth import Truth
from converter.verify.verdict import AGREES, DISAGREES, EXIT_CODES, INCONCLUSIVE
from jax_edm2 import strict_json
from jax_edm2.config import EDM2Config
from jax_edm2.strict_json import clean

FOLDER = Path(golden.__file__).parent / "truths"
SCHEMA = "edm2-golden/1"
MOST_GOLDENS = 100
MOST_BYTES = 64 * 2**20  # of a golden; ours have 80 to 330 KB
COMPILING = 2  # at once


class GoldenError(ConverterError):
    """Goldens that are missing or damaged."""


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
    network = truth.golden["network"]
    if truth.config != network_config(network):
        raise GoldenError(f"{truth.path}: has another configuration than the network {network!a:.60}")
    return network


def check_goldens(
    paths: Iterable[Path] | None = None, progress: Callable[[str], None] = lambda stage: None
) -> Iterator[Outcome]:
    """Hold this machine to goldens, in strict float32; to ours, if none are given. Raises: ConverterError."""

    def check(path: Path) -> Outcome:
        with Truth(path) as truth:
            progress(_network(truth))
            return check_golden(truth)

    with ThreadPoolExecutor(COMPILING) as pool:  # nearly all of the time is XLA's, which compiles on one core
        yield from pool.map(check, find_goldens() if paths is None else paths)


def check_golden(truth: Truth) -> Outcome:
    """Hold this machine to one golden."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from converter.verify.candidate import Candidate
    from jax_edm2.network import Precond

    facts = truth.golden or {}
    tensors = network_tensors(facts["network"])
    leaves = {jax_path(name): jnp.asarray(value) for name, value in tensors.items()}
    candidate = Candidate(Precond(truth.config), unflatten_dict(leaves, sep="/"), truth.config)
    outcome = judge(Options(), candidate, truth, None, lambda stage: None)
    if normalised_digest(tensors) != facts["normalised"]:
        outcome.verdict = DISAGREES
        outcome.reasons.append("the weights, normalised in float64, have another digest than was recorded")
    return outcome


def check_records() -> list[Exact]:
    """The records beside the networks: torch's random streams, and the coefficients of EMA profiles."""
    from golden import ema, torch_streams

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


def network_config(network: str) -> EDM2Config:
    """Of a golden's network. Raises: GoldenError."""
    from golden.networks import DIGITS, NETWORKS

    if network == "digits":
        from converter.snapshot import read_snapshot

        with read_snapshot(DIGITS) as snapshot:
            return snapshot.config
    if network not in NETWORKS:
        raise GoldenError(f"nobody knows how to make the network {network!a:.60} of a golden")
    return EDM2Config(**NETWORKS[network])


def network_tensors(network: str) -> dict[str, np.ndarray]:
    """float32 tensors of a golden's network, by their names in a snapshot. Raises: GoldenError."""
    from golden.networks import DIGITS, weights

    if network == "digits":
        from converter.snapshot import read_snapshot

        with read_snapshot(DIGITS) as snapshot:
            return {name: np.asarray(snapshot.read(name), np.float32) for name in snapshot.tensors}
    network_config(network)
    return weights(network)


def normalised_digest(tensors: dict[str, np.ndarray]) -> str:
    """sha256 of all tensors, weights normalised in float64 (Eq. 47 without the gain), as float32, in JAX's order.

    The sums are numpy's, pairwise, in an order that its versions have kept; half a unit of float32 is far above them.
    """
    sha = hashlib.sha256()
    for path in sorted(map(jax_path, tensors)):
        weight = tensors[torch_name(path)].astype(np.float64)
        if path.endswith("mpconv_weight"):
            norm = np.sqrt(np.square(weight).sum(tuple(range(1, weight.ndim)), keepdims=True))
            weight = weight / (norm / np.sqrt(weight[0].size) + 1e-4)
        sha.update(weight.astype("<f4").tobytes())
    return sha.hexdigest()


def rows(outcomes: list[Outcome]) -> Iterator[dict[str, Any]]:
    """The measurement nearest to its limit, of every network and kind, beside the error that was recorded."""
    for outcome in outcomes:
        facts = outcome.truth["golden"]
        found = [m for each in outcome.measurements.values() for m in each]
        for kind, measured in facts["measured"].items():
            worst = max((m for m in found if m.kind == kind), key=lambda m: m.margin, default=None)
            if worst is not None:
                yield {
                    "network": facts["network"],
                    "kind": kind,
                    "name": worst.name,
                    "error": worst.difference.error,
                    "measured": measured,
                    "limit": worst.limit,
                    "agrees": worst.agrees,
                }


def terminal(outcomes: list[Outcome], records: list[Exact]) -> Iterator[str]:
    """Lines of at most 100 columns."""
    facts = outcomes[0].facts["environment"]["JAX"]
    yield f"float32 on {facts['platform']}, JAX {facts['jax']}; goldens: PyTorch in float64"
    yield ""
    yield f"{'':4}{'network':15}{'check':13}{'error':>8}{'measured':>10}{'allowed':>9}  nearest to its limit"
    for row in rows(outcomes):
        mark = "ok " if row["agrees"] else "BAD"
        figures = f"{number(row['error']):>8}{row['measured']:>10.1e}{row['limit']:>9.1e}"
        yield f"{mark} {row['network']:15}{row['kind']:13}{figures}  {row['name'][:38]}"
    for check in records:
        figures = f"{number(check.error):>8}{'':10}{check.limit:>9.1e}"
        yield f"{'ok ' if check.agrees else 'BAD'} {check.name:28}{figures}  {check.problem or ''}".rstrip()
    yield ""
    yield f"{verdict(outcomes, records).upper()}: {HEADLINES[verdict(outcomes, records)]}."
    for outcome in outcomes:
        for reason in outcome.reasons:
            yield from wrap(f"  {outcome.truth['golden']['network']}: ", reason)


HEADLINES = {
    AGREES: "this machine computes what the goldens say",
    DISAGREES: "this machine does not compute what the goldens say",
    INCONCLUSIVE: "nothing can be concluded",
}


def verdict(outcomes: list[Outcome], records: list[Exact]) -> str:
    """Of everything: the worst of all verdicts."""
    found = {outcome.verdict for outcome in outcomes} | {AGREES if check.agrees else DISAGREES for check in records}
    return next(each for each in (DISAGREES, INCONCLUSIVE, AGREES) if each in found)


def to_json(outcomes: list[Outcome], records: list[Exact]) -> dict[str, Any]:
    """The whole record, of JSON types: schema edm2-golden/1; `reports` are those of edm2-verify, by network."""
    final = verdict(outcomes, records)
    return clean(
        {
            "schema": SCHEMA,
            "verdict": final,
            "exit_code": EXIT_CODES[final],
            "headline": HEADLINES[final],
            "checks": list(rows(outcomes)),
            "records": [{**dataclasses.asdict(check), "agrees": check.agrees} for check in records],
            "reports": {outcome.truth["golden"]["network"]: report.to_json(outcome) for outcome in outcomes},
        }
    )
