"""The tables that BENCHMARKS.md has of a device, from what `python -m tests.surveys.device` has written.

python -m tests.surveys.device_report device.json
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.surveys.device import SCHEMA

KINDS = ("isolated", "accumulated", "compiled", "folded", "gradient", "step", "trajectory")


def tables(record: dict[str, Any]) -> Iterator[str]:
    """Markdown, a line after the other."""
    done: dict[str, list[dict]] = {}
    for step in record["steps"]:
        done.setdefault(step["kind"], []).append(step)
    good = {kind: [step for step in found if "problem" not in step] for kind, found in done.items()}
    yield f"{record['date']} · {', '.join(_machine(record, good))} · `make device`" + " (rehearsal)" * record["quick"]
    if found := good.get("verify"):
        yield from ("", f"| verified | verdict | {' | '.join(KINDS)} |", f"|{'---|' * (2 + len(KINDS))}")
        for step in found:
            largest = step["result"]["largest"]
            cells = [f"{m['error']:.1e} ({m['torch_error']:.1e})" if (m := largest.get(k)) else "" for k in KINDS]
            yield f"| {step['name']} | {step['result']['verdict']} | {' | '.join(cells)} |"
        yield from ("", "Largest relative errors of JAX, PyTorch's own at the same place in brackets.")
    for step in good.get("golden", []):
        worst = max(step["result"]["checks"], key=lambda row: row["error"] / row["limit"])
        yield ""
        yield (
            f"Goldens: {step['result']['verdict']}; nearest to its limit {worst['network']}, {worst['kind']}: "
            f"{worst['error']:.1e} of {worst['limit']:.1e}."
        )
    for step in good.get("streams", []):
        recorded = (f"{name} ({found['device']}, torch {found['torch']})" for name, found in step["result"].items())
        yield from ("", f"torch's random streams, recorded and held to ours: {', '.join(recorded)}.")
    if found := good.get("programs"):
        yield from (
            "",
            "| program | precision | batch | kernels | transposes | memory, GB | roofline, ms | measured, ms | of it |",
        )
        yield f"|{'---|' * 9}"
        for entry in (entry for step in found for entry in step["result"]):
            yield _program(entry)
    if found := good.get("speed"):
        yield from (
            "",
            "| evaluations a second | precision | batch | way | | of PyTorch eager | first run, s |",
            f"|{'---|' * 7}",
        )
        for step in found:
            precision = step["name"].partition(", ")[2]
            for entry in step["result"]:
                yield from _speed(entry, precision)
    problems = [step for step in record["steps"] if "problem" in step]
    yield from ("", *(f"Not done: {step['name']}: {step['problem']}." for step in problems))


def _machine(record: dict[str, Any], good: dict[str, list[dict]]) -> Iterator[str]:
    """Hardware and versions, as far as a step said them."""
    for step in good.get("verify", []):
        jax, torch = step["result"]["environment"]["JAX"], step["result"]["environment"]["PyTorch"]
        yield from (
            jax["device"],
            jax["processor"],
            f"jax {jax['jax']}",
            f"torch {torch['torch']} on {torch['device']}",
        )
        return
    yield record["device"]


def _program(entry: dict[str, Any]) -> str:
    counts, memory = entry["counts"], entry["memory"] or {}
    roofline = entry.get("roofline_seconds")
    size = sum(memory.get(k, 0) for k in ("argument", "output", "temp", "generated_code")) - memory.get("alias", 0)
    cells = [f"{entry['network']}, {entry['program']}", entry["precision"], entry["batch"]]
    cells += [sum(counts["kernels"].values()), counts["transposes"], f"{size / 1e9:.2f}"]
    cells += [f"{roofline * 1e3:.2f}" if roofline else "", f"{entry['measured_seconds'] * 1e3:.2f}"]
    cells += [f"{roofline / entry['measured_seconds']:.0%}" if roofline else ""]
    return f"| {' | '.join(map(str, cells))} |"


def _speed(entry: dict[str, Any], precision: str) -> Iterator[str]:
    start = f"| {entry['network']} | {precision} | {entry['batch']} |"
    for way, figures in entry.get("ways", {}).items():
        if "unavailable" in figures:
            yield f"{start} {way} | not available | | |"
        else:
            of = f"{figures['of_eager']:.2f}" if figures["of_eager"] else ""
            yield f"{start} {way} | {figures['evaluations_per_second']:.3g} | {of} | {figures['first_seconds']:.1f} |"
    if "ended" in entry:
        yield f"{start} {entry['ended']} | | | |"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.device_report", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    args = parser.parse_args(argv)
    record = json.loads(args.file.read_text())
    if record.get("schema") != SCHEMA:
        parser.error(f"{args.file}: its schema is {record.get('schema')!r:.60}, not {SCHEMA!r}")
    for line in tables(record):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
