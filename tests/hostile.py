"""Broken and hostile inputs, each converted in a process of its own, and watched.

    python -m tests.hostile        # a table by class

Each input must end in its own one-line error (or, where it is sound after all, in the right result), with nothing
executed, no crash, within 5 s, with less than 200 MB of memory, and with no file left behind.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests import children
from tests.hostile_inputs import ACCEPT, INPUTS, Input
from tests.hostile_pickles import SENTINEL

SECONDS, MEGABYTES, CHARACTERS = 5, 200, 32_768


@dataclass
class Seen:
    """What edm2-convert did with an input."""

    code: int | None
    message: str
    seconds: float
    megabytes: float
    problems: list[str]


def run(case: Input, folder: Path) -> Seen:
    """Convert an input in a process of its own, and look at everything around it."""
    path, output = folder / "input.pkl", folder / "output.safetensors"
    case.build(path)
    before = sorted(folder.rglob("*"))
    log = folder.parent / f"{folder.name}.log"
    started = time.perf_counter()
    process = children.start(children.convert_watched, str(path), str(output), str(log))
    process.join(SECONDS + 5)
    seconds = time.perf_counter() - started
    if process.is_alive():
        process.kill()
        process.join()
    text, _, peak = log.read_text().rpartition("\n") if log.exists() else ("", "", "0")
    made = [entry for entry in sorted(folder.rglob("*")) if entry not in before]
    megabytes = float(peak or 0)
    problems = []
    if seconds > SECONDS:
        problems.append(f"took {seconds:.1f} s")
    if megabytes > MEGABYTES:
        problems.append(f"took {megabytes:.0f} MB")
    if any(entry.name == SENTINEL for entry in made):
        problems.append("was executed")
    if case.says == ACCEPT:
        if process.exitcode != 0 or made != [output]:
            problems.append(f"should be converted: exit code {process.exitcode}, {text!r}, {made}")
    else:
        if process.exitcode != 2:
            problems.append(f"exit code {process.exitcode}")
        if made:
            problems.append(f"left {made}")
        if not text.startswith("edm2-convert: ") or "\n" in text or "Traceback" in text:
            problems.append(f"is not one line: {text!r:.300}")
        if case.says not in text:
            problems.append(f"says {text!r:.300}, not {case.says!r}")
        if len(text) > CHARACTERS:
            problems.append(f"says {len(text)} characters")
    return Seen(process.exitcode, text, seconds, megabytes, problems)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", action="store_true", help="print what is said to each")
    args = parser.parse_args()
    table = defaultdict(list)
    for case in INPUTS:
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / "input"
            inside.mkdir()
            seen = run(case, inside)
        table[case.kind].append((case, seen))
        if args.messages:
            print(f"{case.kind}: {case.name}\n    {seen.message.replace(folder, '')}")
        for problem in seen.problems:
            print(f"PROBLEM {case.kind}: {case.name}: {problem}", flush=True)
    print(f"{'class':16}{'inputs':>7}{'refused':>9}{'converted':>10}{'problems':>9}{'slowest':>10}{'most memory':>12}")
    for kind, found in table.items():
        refused = sum(seen.code == 2 for _, seen in found)
        converted = sum(seen.code == 0 for _, seen in found)
        slowest = max(seen.seconds for _, seen in found)
        most = max(seen.megabytes for _, seen in found)
        bad = sum(bool(seen.problems) for _, seen in found)
        print(f"{kind:16}{len(found):7}{refused:9}{converted:10}{bad:9}{slowest:8.2f} s{most:9.0f} MB")
    bad = sum(bool(seen.problems) for found in table.values() for _, seen in found)
    print(f"{len(INPUTS)} inputs, {bad} with problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
