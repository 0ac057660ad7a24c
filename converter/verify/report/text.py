"""What a verification found: one JSON record, and from it a text for the terminal and one for pull requests.

Schema edm2-verify/1. Numbers that do not exist are null. Errors are |x - truth| / |truth| (Euclidean norms).

    schema, verdict (agrees, disagrees, inconclusive; measured: throughput alone), exit_code, headline,
    checked [text]: the checks that the verdict is about, reasons [text], warnings [text]
    guilty        [{scope, operation, what, why}]: blocks to blame, in the order of computation
    checks        {NAME: {verdict, count, failed, worst}}: worst is the measurement closest to its limit or beyond it
    parameters    {count, values, different: [{name, why}]}, or null
    tree          [{scope, guilty, worst: {isolated, accumulated},
                  operations: [{operation, what, isolated, accumulated}]}]
    measurements  {forward, gradients, derivative, trajectory, training: [measurement]}
    measurement   {kind (see `verdict.Tolerance.floor`), case, name, error,
                  torch_error, limit, condition (see torch_side/conditioning.py; 0 where none was measured), scale,
                  cosine, elementwise, size (root mean square of the truth), agrees, failure}
    trajectory    {sigmas, error [JAX], torch_error, limit, psnr in dB, samples: {NAME: data: URI of a PNG}}, or null
    golden        {network, measured, on, tolerance, normalised} of a golden (see golden/check.py), or null
    throughput    [{batch, steps, rounds, ways: {NAME: {first_seconds, evaluations_per_second, images_per_second,
                  flop_per_second, of_eager, spread} or {unavailable}}, memory: {jax, torch: {kind, peak_bytes}},
                  ceiling: FLOP/s of matrix products}]
    code          {sha256, known, nearest, differs: [text], run}: the snapshot's embedded source (see embedded.py): what
                  it is known as, or null and how it differs, and whether it was run as reference; or null
    port          the name of somebody else's denoiser, if one was judged, or null
    snapshot, checkpoint, reference, config, plan, tolerance, switches, environment, seconds
    date          when it ended, in UTC (ISO 8601); command: the command line that asked for it, or null
"""

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax_edm2 import __version__
from jax_edm2.messages import one_line, printable
from jax_edm2.strict_json import clean

from ... import embedded
from ..cases import OF_ANY_DENOISER, Plan
from ..outcome import Outcome
from ..taps import OPERATIONS, scopes
from ..verdict import AGREES, DISAGREES, INCONCLUSIVE, MEASURED, Measurement
from .markup import markdown as md
from .markup import markdown_code as code
from .samples import data_uris

SCHEMA = "edm2-verify/1"
HEADLINES = {
    AGREES: "JAX computes what PyTorch computes",
    DISAGREES: "JAX does not compute what PyTorch computes",
    INCONCLUSIVE: "nothing can be concluded",
    MEASURED: "speed was measured, agreement was not",
}
COMPARED = ("parameters", "forward", "gradients", "derivative", "trajectory", "training")  # what verdicts are about
ALWAYS = Plan().checks  # without which one is in part; of somebody else's denoiser, OF_ANY_DENOISER
FED = "good by itself, but fed what was wrong"
WORST = 10
KINDS = ("isolated", "accumulated")  # of a tap


def to_json(outcome: Outcome, command: str | None = None) -> dict[str, Any]:
    """The whole record, of JSON types. command: the command line that asked for it."""
    truth = outcome.truth
    measurements = {check: [_measurement(m) for m in found] for check, found in outcome.measurements.items()}
    checks = {check: _check(found) for check, found in outcome.measurements.items() if found}
    parameters, different = None, outcome.findings.parameters
    if different is not None:
        parameters = {
            "count": len(truth.parameters),
            "values": sum(math.prod(entry["shape"]) for entry in truth.parameters.values()),
            "different": [{"name": name, "why": why} for name, why in different],
        }
        verdict = DISAGREES if different else AGREES
        counts = {"count": parameters["count"], "failed": len(different), "worst": None}
        checks = {"parameters": {"verdict": verdict, **counts}} | checks
    for where, _ in outcome.findings.crashes:
        check = where if where in COMPARED else "forward"
        checks.setdefault(check, {"count": 0, "failed": 0, "worst": None})["verdict"] = DISAGREES
    return clean(
        {
            "schema": SCHEMA,
            "version": __version__,
            "verdict": outcome.verdict,
            "exit_code": outcome.exit_code,
            "headline": _headline(outcome),
            "checked": _checked(outcome),
            "reasons": outcome.reasons,
            "warnings": outcome.warnings + list(_stranger(outcome)),
            "guilty": [{**dataclasses.asdict(g), "what": OPERATIONS.get(g.operation, "")} for g in outcome.guilty],
            "checks": checks,
            "parameters": parameters,
            "tree": list(_tree(outcome, measurements["forward"])),
            "measurements": measurements,
            "trajectory": _trajectory(outcome, measurements["trajectory"]),
            "golden": dataclasses.asdict(truth.golden) if truth.golden else None,
            "throughput": outcome.throughput,
            "snapshot": truth.snapshot | {"path": str(outcome.snapshot) if outcome.snapshot else None},
            "checkpoint": str(outcome.checkpoint) if outcome.checkpoint else None,
            "port": outcome.port,
            "reference": truth.reference,
            "code": _code(outcome),
            "config": truth.config.to_json(),
            "plan": dataclasses.asdict(truth.plan),
            "tolerance": dataclasses.asdict(outcome.tolerance),
            "switches": outcome.switches,
            "repeat": truth.repeat,
            "environment": outcome.environment,
            "seconds": {"all": outcome.seconds, "PyTorch": truth.seconds},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
        }
    )


def _code(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.code is None:
        return None
    return {**dataclasses.asdict(outcome.code), "run": outcome.truth.reference == "embedded"}


def _stands_in(code: dict[str, Any] | None) -> bool:
    """Whether torch_ref was run in place of a source that is not known to be the same."""
    return code is not None and code["known"] is None and not code["run"]


def _checked(outcome: Outcome) -> list[str]:
    possible = COMPARED if outcome.port is None else OF_ANY_DENOISER
    return [check for check in possible if check in outcome.truth.plan.checks]


def _left(port: str | None, checked: list[str]) -> list[str]:
    """Checks that are missing for a verdict on all."""
    return [check for check in (ALWAYS if port is None else OF_ANY_DENOISER) if check not in checked]


def _headline(outcome: Outcome) -> str:
    """What was found, of what was checked, and no more."""
    checked, verdict = _checked(outcome), outcome.verdict
    if checked == ["parameters"] and verdict in (AGREES, DISAGREES):
        return f"the parameters are {'equal' if verdict == AGREES else 'not equal'}; no network was run"
    headline = HEADLINES[verdict]
    if outcome.port is not None and verdict in (AGREES, DISAGREES):
        headline = headline.replace("JAX", outcome.port, 1)
    if verdict == AGREES and _stands_in(_code(outcome)):
        headline = f"{outcome.port or 'JAX'} computes what torch_ref computes; the snapshot's own source was not run"
    if verdict == AGREES and (left := _left(outcome.port, checked)):
        headline += f"; checked: {', '.join(checked)}; not checked: {', '.join(left)}"
    return headline


def _stranger(outcome: Outcome) -> Iterator[str]:
    if outcome.code is not None and _stands_in(_code(outcome)):
        yield (
            f"the snapshot's own source is {embedded.description(outcome.code)}. It was not run: --reference embedded "
            "judges it"
        )


def title(report: dict[str, Any], write: Callable[[str], str] = str.lower) -> str:
    """The verdict, and in what if not in all; with what where that is not the snapshot's own: agrees with torch_ref."""
    if report["verdict"] == AGREES and report["checked"] == ["parameters"]:
        return write(f"{AGREES} in parameters")
    some = " in part" if report["verdict"] == AGREES and _left(report["port"], report["checked"]) else ""
    if report["verdict"] == AGREES and _stands_in(report["code"]):
        return write(f"{AGREES}{some} with") + " torch_ref"
    return write(report["verdict"] + some)


def _measurement(m: Measurement) -> dict[str, Any]:
    d = m.difference
    return {
        "kind": m.kind,
        "case": m.case,
        "name": m.name,
        "error": d.error,
        "torch_error": m.torch_error,
        "limit": m.limit,
        "condition": m.condition,
        "scale": d.scale,
        "cosine": d.cosine,
        "elementwise": d.elementwise,
        "size": d.size,
        "agrees": m.agrees,
        "failure": m.failure,
    }


def _check(found: list[Measurement]) -> dict[str, Any]:
    failed = sum(not m.agrees for m in found)
    worst = max(found, key=lambda m: m.margin)
    return {
        "verdict": DISAGREES if failed else AGREES,
        "count": len(found),
        "failed": failed,
        "worst": _measurement(worst),
    }


def _tree(outcome: Outcome, forward: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every block in the order of computation; of several seeds the worst."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for m in forward:
        key = m["name"], m["kind"]
        if key not in found or share(m) > share(found[key]):
            found[key] = m
    blamed = {g.scope: g.operation for g in outcome.guilty}
    for scope, operations in scopes(outcome.truth.config).items():
        rows: list[dict[str, Any]] = [
            {"operation": o, "what": OPERATIONS[o]} | {kind: found.get((f"{scope}/{o}", kind)) for kind in KINDS}
            for o in operations
            if any((f"{scope}/{o}", kind) in found for kind in KINDS)  # a golden has the last of a block alone
        ]
        worst = {kind: max((row[kind] for row in rows if row[kind]), key=share, default=None) for kind in KINDS}
        yield {"scope": scope, "guilty": blamed.get(scope), "worst": worst, "operations": rows}


def share(m: dict[str, Any]) -> float:
    """An error as a share of what is allowed; infinite where something else is wrong."""
    if m["error"] is None or m["scale"] is None:
        return math.inf
    if not m["limit"]:  # null, for infinite: a condition number that allows anything
        return 0.0 if m["limit"] is None else math.inf
    return max(m["error"], abs(m["scale"] - 1)) / m["limit"]


def _trajectory(outcome: Outcome, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        "sigmas": outcome.findings.sigmas,
        "error": [m["error"] for m in found],
        "torch_error": [m["torch_error"] for m in found],
        "limit": [m["limit"] for m in found],
        "psnr": outcome.findings.psnr,
        "samples": data_uris(outcome.findings.samples),
    }


# Text


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def check_lines(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(check, verdict, sentence) of every check."""
    for name, check in report["checks"].items():
        if name == "parameters":
            p = report["parameters"]
            text = f"{p['count']} tensors, {p['values']:,} values: " + (
                f"{check['failed']} differ" if check["failed"] else "all equal"
            )
        else:
            text = f"{check['count'] - check['failed']} of {check['count']} agree"
            if worst := check["worst"]:
                error = f"JAX {number(worst['error'])} of {number(worst['limit'])}"
                text += f"; worst: {error} allowed (PyTorch {number(worst['torch_error'])})"
        if name == "trajectory" and report["trajectory"] and report["trajectory"]["psnr"]:
            text += f"; {report['trajectory']['psnr']:.0f} dB"
        yield name, check["verdict"], text


def blame(report: dict[str, Any]) -> str:
    """One sentence on what is guilty: the first block, and the names of the others."""
    first, *others = report["guilty"]
    sentence = f"{first['scope']}, {first['operation']} ({first['what']}): {first['why']}"
    if others:
        names = ", ".join(f"{g['scope']} ({g['operation']})" for g in others[:3])
        sentence += f"; and {len(others)} more: {names}{' ...' if len(others) > 3 else ''}"
    return sentence


def subject(report: dict[str, Any]) -> str:
    """What was verified: the golden's network, or the snapshot."""
    return report["golden"]["network"] if report["golden"] else report["snapshot"]["name"]


def terminal(report: dict[str, Any]) -> Iterator[str]:
    """Lines of at most 100 columns."""
    beside = f" and {other}" if (other := report["checkpoint"] or report["port"]) else ""
    yield f"{report['snapshot']['path'] or subject(report)}{beside}"
    device = report["environment"]["JAX"]["platform"]
    yield f"{report['plan']['precision']} on {device}; reference: {report['reference']}; truth: PyTorch in float64"
    yield ""
    if report["tree"] and any(row["worst"]["isolated"] for row in report["tree"]):
        yield from _tree_lines(report)
        yield ""
    for name, verdict, text in check_lines(report):
        yield from wrap(f"{'ok ' if verdict == AGREES else 'BAD'} {name:<11} ", text)
    for entry in report["throughput"]:
        yield ""
        yield from throughput_lines(entry)
    for warning in report["warnings"]:
        yield from wrap("note: ", warning)
    yield ""
    yield f"{title(report, str.upper)}: {report['headline']}."
    if report["guilty"]:
        yield from wrap("  guilty: ", blame(report))
    for reason in report["reasons"]:
        yield from wrap("  ", reason)


def _tree_lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"{'':44}{'isolated':^25}   {'accumulated':^25}"
    yield f"{'    largest error in':<44}{'JAX':>8}{'PyTorch':>9}{'allowed':>9}  {'JAX':>8}{'PyTorch':>9}{'allowed':>9}"
    for row in report["tree"]:
        bad = row["guilty"] is not None
        marks = [m for m in row["worst"].values() if m]
        mark = "BAD" if bad else "~  " if any(not m["agrees"] for m in marks) else "ok "
        cells = ["".join(f"{number(m[k]):>9}" for k in ("error", "torch_error", "limit")) if m else f"{'-':>9}" * 3
                 for m in (row["worst"]["isolated"], row["worst"]["accumulated"])]  # fmt: skip
        yield f"{mark} {row['scope']:<39}{cells[0]}{' '}{cells[1]}"
        if bad:
            yield f"      first bad operation: {row['guilty']} ({OPERATIONS[row['guilty']]})"
    if any(not m["agrees"] for row in report["tree"] if not row["guilty"] for m in row["worst"].values() if m):
        yield f"~ {FED}"


def throughput_lines(entry: dict[str, Any]) -> Iterator[str]:
    if "ended" in entry:
        yield f"batch {entry['batch']}: {entry['ended']}"
        return
    yield f"batch {entry['batch']}; images at {entry['steps']} Heun steps; median of {entry['rounds']} turns"
    yield f"{'':22}{'denoiser/s':>11}{'images/s':>10}{'GFLOP/s':>9}{'of eager':>10}{'first run':>11}{'peak memory':>13}"
    for way, f in entry["ways"].items():
        if "unavailable" in f:
            yield f"{way:<22}not available: {f['unavailable'][:60]}"
            continue
        memory = entry["memory"]["jax" if way.lower().startswith("jax") else "torch"]["peak_bytes"]
        ratio = f"{f['of_eager']:.2f}x" if f["of_eager"] else "-"
        yield (
            f"{way:<22}{f['evaluations_per_second']:>11.3g}{f['images_per_second']:>10.3g}"
            f"{f['flop_per_second'] / 1e9:>9.0f}{ratio:>10}{f['first_seconds']:>9.1f} s{memory / 1e6:>10.0f} MB"
        )
    if (ceiling := entry["ceiling"]) and (folded := entry["ways"].get("JAX folded", {}).get("flop_per_second")):
        yield f"JAX's matrix products: {ceiling / 1e9:.0f} GFLOP/s; JAX folded has {folded / ceiling:.0%} of that"


def wrap(prefix: str, text: str, width: int = 100) -> list[str]:
    import textwrap

    return textwrap.wrap(
        printable(text), width, initial_indent=prefix, subsequent_indent=" " * len(prefix), break_on_hyphens=False
    ) or [prefix.rstrip()]


def markdown(report: dict[str, Any]) -> str:
    """A text for a pull request."""
    lines = [f"### edm2-verify: {title(report)}", "", f"{report['headline']}: {code(subject(report))}"]
    other = report["checkpoint"] or report["port"]
    lines[-1] += f", {code(other)}." if other else "."
    lines += [
        f"- **guilty**: {code(g['scope'])}, {md(g['operation'])} ({md(g['what'])}): {md(g['why'])}"
        for g in report["guilty"][:1]
    ]
    if others := report["guilty"][1:]:
        lines.append(f"- and {len(others)} more: " + ", ".join(code(g["scope"]) for g in others))
    lines += [f"- {md(reason)}" for reason in report["reasons"]]
    lines += ["", "| check | | |", "|---|---|---|"]
    lines += [f"| {md(name)} | {verdict} | {md(text)} |" for name, verdict, text in check_lines(report)]
    for entry in report["throughput"]:
        if "ended" not in entry:
            lines += ["", *(f"    {one_line(line)}" for line in throughput_lines(entry))]  # code, by its indentation
    lines += [f"\n{md(warning)}." for warning in report["warnings"]]
    jax, torch = report["environment"]["JAX"], report["environment"]["PyTorch"]
    source = "a golden" if report["golden"] else f"snapshot {code('sha256:' + str(report['snapshot']['sha256']))}"
    lines += [
        "",
        f"{report['plan']['precision']}, JAX {md(jax['jax'])} on {md(jax['device'])}, PyTorch "
        f"{md(torch['torch'])} on {md(torch['device'])}; {source}; edm2-jax {report['version']}.",
    ]
    return "\n".join(lines) + "\n"
