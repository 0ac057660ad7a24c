"""Mutants of a sound training state: reading one ends in our error, or in tensors that have their checksums.

    python -m tests.surveys.fuzz_states --mutants 5000        # seeded

Bytes of the file are changed as they are, or opcodes of its pickle, with a checksum that is right for them.
"""

import argparse
import itertools
import pickletools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.opening import open_weights
from tests.corpora.hostile_states import members, sound, with_member
from tests.surveys.fuzz import MUTATIONS

SECONDS = 5
Change = Callable[[np.random.Generator, bytes, list[bytes]], bytes]


def bytes_changed(rng: np.random.Generator, data: bytes, _ops: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    return bytes(changed)


def headers_changed(rng: np.random.Generator, data: bytes, _ops: list[bytes]) -> bytes:
    """Of members, of the directory, and its end."""
    changed, marks = bytearray(data), [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08"]
    for _ in range(rng.integers(1, 4)):
        places = [at for at in range(len(data)) if data[at : at + 2] == b"PK" and data[at : at + 4] in marks]
        at = places[rng.integers(len(places))] + rng.integers(4, 46)
        if at < len(changed):
            changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    return bytes(changed)


def piece_missing(rng: np.random.Generator, data: bytes, _ops: list[bytes]) -> bytes:
    start, stop = sorted(rng.integers(len(data), size=2))
    return data[:start] + (data[stop:] if rng.integers(2) else b"")


def _of_pickle(mutation: Callable) -> Change:
    def changed(rng: np.random.Generator, _data: bytes, ops: list[bytes]) -> bytes:
        for _ in range(rng.integers(1, 4)):
            ops = mutation(ops, rng, ops) if any(ops) else ops
        return with_member("data.pkl", b"".join(ops))

    changed.__name__ = mutation.__name__
    return changed


OF_ARCHIVES: tuple[Change, ...] = (bytes_changed, headers_changed, piece_missing)
CHANGES = (*OF_ARCHIVES, *map(_of_pickle, MUTATIONS))


def read(path: Path) -> dict[str, bytes]:
    with open_weights(path) as state:
        return {name: state.read(name).tobytes() for name in state.tensors}


def fuzz(count: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Outcomes by change, and problems."""
    data, pickle = sound(), dict(members())["data.pkl"]
    starts = [at for _, _, at in pickletools.genops(pickle)] + [len(pickle)]
    ops = [pickle[a:b] for a, b in itertools.pairwise(starts)]
    rng, outcomes, problems = np.random.default_rng(seed), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pt")
        path.write_bytes(data)
        expected = read(path)
        for number in range(count):
            change = CHANGES[rng.integers(len(CHANGES))]
            path.write_bytes(change(rng, data, ops))
            about, started = f"mutant {number} of seed {seed} ({change.__name__})", time.perf_counter()
            try:
                found = read(path)
            except ConverterError as error:
                outcomes[change.__name__, "refused"] += 1
                if "\n" in str(error) or not str(error).startswith(f"{path}: ") or not str(error).isprintable():
                    problems.append(f"{about} says {error!s:.300}")
            except BaseException as error:
                problems.append(f"{about} raises {error!r:.300}")
            else:
                same = found == expected
                outcomes[change.__name__, "same tensors" if same else "other tensors"] += 1
                if not same and change in OF_ARCHIVES:  # checksums tell
                    problems.append(f"{about} has other tensors")
            if time.perf_counter() - started > SECONDS:
                problems.append(f"{about} takes {time.perf_counter() - started:.1f} s")
    return outcomes, problems


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.fuzz_states", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes, problems = fuzz(args.mutants, args.seed)
    for (change, outcome), count in sorted(outcomes.items()):
        print(f"{change:20}{outcome:15}{count:8,}")
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{args.mutants:,} mutants of a training state, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
