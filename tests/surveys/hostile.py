"""Broken and hostile inputs, each given to a command in a separate process, and watched.

    python -m tests.surveys.hostile        # a table by class

Each input must end in its own one-line error (or, where it is sound after all, in the right result), with nothing
executed, no crash, within 5 s of CPU time, with less than 200 MB of memory, and with no file left behind.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.corpora import (
    hostile_checkpoints,
    hostile_datasets,
    hostile_detectors,
    hostile_goldens,
    hostile_networks,
    hostile_orbax,
    hostile_snapshots,
    hostile_states,
    hostile_truths,
    hostile_vaes,
)
from tests.corpora.hostile_pickles import SENTINEL
from tests.corpora.inputs import ACCEPT, Input
from tests.support import children

CORPORA = (
    hostile_snapshots, hostile_networks, hostile_checkpoints, hostile_orbax, hostile_vaes, hostile_states,
    hostile_datasets, hostile_detectors,
)  # fmt: skip
INPUTS = [case for corpus in CORPORA for case in corpus.INPUTS]
CHARACTERS = 2000
PATIENCE = 120  # seconds, after which a process is taken to wait for something that never comes


@dataclass
class Seen:
    """What a command did with an input."""

    code: int | None
    message: str
    seconds: float  # of CPU time
    megabytes: float
    problems: list[str]


def run(case: Input, folder: Path) -> Seen:
    """Give an input to its command in a separate process, and look at everything around it."""
    case.build(folder / case.file)
    before = set(folder.rglob("*"))  # of which there may be thousands
    log = folder.parent / f"{folder.name}.log"
    process = children.start(children.watched, case.command, str(folder), str(log))
    process.join(PATIENCE)
    problems = []
    if process.is_alive():
        process.kill()
        process.join()
        problems.append(f"did not end in {PATIENCE} s")
    text, _, figures = (log.read_text(errors="replace") if log.exists() else "").rpartition("\n")
    text = text.removesuffix("\n")
    seconds, megabytes = map(float, figures.split() if figures else (0, 0))
    made = [entry for entry in sorted(folder.rglob("*")) if entry not in before]
    if seconds > case.seconds:
        problems.append(f"took {seconds:.1f} s")
    if megabytes > case.megabytes:
        problems.append(f"took {megabytes:.0f} MB")
    if any(entry.name == SENTINEL for entry in made):
        problems.append("was executed")
    if case.says == ACCEPT:
        output = None if case.output is None else folder / case.output
        unexpected = [entry for entry in made if output is None or output not in (entry, *entry.parents)]
        if process.exitcode != 0 or unexpected or (output is not None and output not in made):
            problems.append(f"should be accepted: exit code {process.exitcode}, {text!r:.2000}, {made}")
    else:
        if process.exitcode != case.code:
            problems.append(f"exit code {process.exitcode}")
        if made:
            problems.append(f"left {made}")
        if not text.startswith(f"{case.command[0]}: ") or "\n" in text or "Traceback" in text:
            problems.append(f"is not one line: {text!r:.2000}")
        if case.says not in text:
            problems.append(f"says {text!r:.2000}, not {case.says!r}")
        if len(text) > CHARACTERS + len(case.command[0]) or not text.isprintable():
            problems.append(f"says {len(text)} characters, or such as are not printable")
    return Seen(process.exitcode, text, seconds, megabytes, problems)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", action="store_true", help="print what is said to each")
    parser.add_argument("--only", default="", help="those inputs whose class and name contain this")
    args = parser.parse_args()
    table = defaultdict(list)
    everything = [*INPUTS, *hostile_truths.FOR_COMMANDS, *hostile_goldens.INPUTS]
    inputs = [case for case in everything if args.only in f"{case.kind}: {case.name}"]
    for case in inputs:
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / "input"
            inside.mkdir()
            seen = run(case, inside)
        table[case.kind].append((case, seen))
        if args.messages:
            print(f"{case.kind}: {case.name}\n    {seen.message.replace(folder, '')}")
        for problem in seen.problems:
            print(f"PROBLEM {case.kind}: {case.name}: {problem}", flush=True)
    print(f"{'class':16}{'inputs':>7}{'refused':>9}{'accepted':>10}{'problems':>9}{'slowest':>10}{'most memory':>12}")
    for kind, found in table.items():
        refused = sum(seen.code not in (0, None) for _, seen in found)
        accepted = sum(seen.code == 0 for _, seen in found)
        slowest = max(seen.seconds for _, seen in found)
        most = max(seen.megabytes for _, seen in found)
        bad = sum(bool(seen.problems) for _, seen in found)
        print(f"{kind:16}{len(found):7}{refused:9}{accepted:10}{bad:9}{slowest:8.2f} s{most:9.0f} MB")
    bad = sum(bool(seen.problems) for found in table.values() for _, seen in found)
    print(f"{len(inputs)} inputs, {bad} with problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
