"""What a comparison with goldens found: lines for a terminal, and a record (schema edm2-golden/1)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_edm2.strict_json import clean, dumps

from ..facts import Golden
from ..outcome import Outcome
from ..report import text
from ..report.files import write_report, write_whole
from ..report.html import index
from ..report.text import number, wrap
from ..verdict import AGREES, DISAGREES, EXIT_CODES, INCONCLUSIVE
from .check import Exact

SCHEMA = "edm2-golden/1"


def golden_of(outcome: Outcome) -> Golden:
    """What the outcome's truth says of itself."""
    assert outcome.truth.golden is not None
    return outcome.truth.golden


def rows(outcomes: list[Outcome]) -> Iterator[dict[str, Any]]:
    """The measurement nearest to its limit, of every network and kind, beside the error that was recorded."""
    for outcome in outcomes:
        facts = golden_of(outcome)
        found = [m for each in outcome.measurements.values() for m in each]
        for kind, measured in facts.measured.items():
            worst = max((m for m in found if m.kind == kind), key=lambda m: m.margin, default=None)
            if worst is not None:
                yield {
                    "network": facts.network,
                    "kind": kind,
                    "name": worst.name,
                    "error": worst.difference.error,
                    "measured": measured,
                    "limit": worst.limit,
                    "agrees": worst.agrees,
                }


def terminal(outcomes: list[Outcome], records: list[Exact]) -> Iterator[str]:
    """Lines of at most 100 columns."""
    facts = outcomes[0].environment["JAX"]
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
            yield from wrap(f"  {golden_of(outcome).network}: ", reason)


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
            "reports": {golden_of(outcome).network: text.to_json(outcome) for outcome in outcomes},
        }
    )


def write(record: dict[str, Any], folder: Path):
    """goldens.json, index.html, and a report of every network in a folder of its name. record: of `to_json`."""
    for network, report in record["reports"].items():
        (folder / network).mkdir(parents=True, exist_ok=True)
        write_report(report, folder / network)
    write_whole(folder / "goldens.json", dumps(record))
    write_whole(folder / "index.html", index(record))
