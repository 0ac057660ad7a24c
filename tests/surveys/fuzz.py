"""Mutants of sound snapshots: reading one ends in our error, or in its tensors, or in others, which a hash tells.
What is read, torch's own unpickling reads alike.

    python -m tests.surveys.fuzz --mutants 20000        # some minutes; seeded

Bytes are changed, opcodes are exchanged, and operations are deleted, repeated, moved and given other arguments.
"""

import argparse
import hashlib
import itertools
import pickletools
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from jax_edm2.converter.downloads.cache import Cache, CacheError, key_of, write_json
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.corpora.hostile_pickles import CONFIG
from tests.support.networks import network
from tests.support.unpickled import difference

SECONDS = 5
URL = "https://example.invalid/mutant.pkl"
INTERESTING = (0, 1, 2, 4, 0x7F, 0x80, 0xFF)
HEADER = 300  # bytes of a tensor's data that are its own little pickles


class Base:
    """A sound snapshot, cut into the operations of its pickle."""

    def __init__(self, path: Path):
        data = path.read_bytes()
        starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
        ops = [data[start:end] for start, end in itertools.pairwise(starts)]
        self.ops = [op for op in ops if op[:1] != b"\x95"]  # without frames, which would refuse most of it at once
        self.tensors = read(path)


def read(path: Path) -> dict[str, bytes]:
    """Every tensor of a snapshot, to its last byte."""
    with read_snapshot(path) as snapshot:
        return {name: b"".join(map(bytes, snapshot.chunks(name))) for name in snapshot.tensors}


def bases(folder: Path, digits: Path) -> list[Base]:
    """The digits snapshot, and tiny ones of other kinds."""
    found = [Base(digits)]
    for i, kwargs in enumerate(({}, {"label_dim": 0, "dropout": 0.1}, {"resample_filter": [1, 3, 3, 1]})):
        path = folder / f"base{i}.pkl"
        encoder = StabilityVAEEncoder() if i else None
        write_snapshot(path, network({**CONFIG, **kwargs}, i), encoder=encoder, protocol=3 + i)
        found.append(Base(path))
    return found


# Mutations: of a list of operations, or of bytes. Each is given a random generator.


def changed_byte(ops, rng, others):
    i = _small(ops, rng)
    op = bytearray(ops[i])
    position = rng.integers(min(len(op), HEADER))
    op[position] = rng.choice(INTERESTING) if rng.integers(2) else op[position] ^ (1 << rng.integers(8))
    return [*ops[:i], bytes(op), *ops[i + 1 :]]


def other_opcode(ops, rng, others):
    i = rng.integers(len(ops))
    code = pickletools.opcodes[rng.integers(len(pickletools.opcodes))].code.encode("latin1")
    return [*ops[:i], code + ops[i][1:], *ops[i + 1 :]]


def deleted(ops, rng, others):
    i = rng.integers(len(ops))
    return ops[:i] + ops[i + rng.integers(1, 4) :]


def repeated(ops, rng, others):
    i = rng.integers(len(ops))
    j = i + rng.integers(1, 6)
    return ops[:j] + ops[i:j] * int(rng.choice([1, 2, 100])) + ops[j:]


def moved(ops, rng, others):
    i, j = sorted(rng.integers(len(ops), size=2))
    return [*ops[:i], ops[j], *ops[i + 1 : j], ops[i], *ops[j + 1 :]] if i < j else ops


def borrowed(ops, rng, others):
    i, j = rng.integers(len(ops)), rng.integers(len(others))
    return ops[:i] + others[j : j + rng.integers(1, 6)] + ops[i + rng.integers(2) :]


def other_argument(ops, rng, others):
    """A number, or the length in front of text or bytes."""
    widths = {b"K": 1, b"M": 2, b"J": 4, b"h": 1, b"j": 4, b"q": 1, b"r": 4, b"X": 4, b"\x8c": 1, b"B": 4, b"C": 1}
    places = [i for i, op in enumerate(ops) if op[:1] in widths]
    i = places[rng.integers(len(places))]
    width = widths[ops[i][:1]]
    value = int(rng.choice([0, 1, 2, 255, 2**16, 2**31 - 1, 2**32 - 1, rng.integers(2**32)]))
    return [*ops[:i], ops[i][:1] + struct.pack("<Q", value)[:width] + ops[i][1 + width :], *ops[i + 1 :]]


def other_shape(ops, rng, others):
    """A number among those that stand in tuples: shapes and strides."""
    places = [i for i, op in enumerate(ops) if op[:1] in (b"K", b"M") and i + 4 < len(ops)]
    i = places[rng.integers(len(places))]
    return [*ops[:i], b"J" + struct.pack("<i", int(rng.integers(-5, 100))), *ops[i + 1 :]]


def cut(ops, rng, others):
    data = b"".join(ops)
    return [data[: rng.integers(len(data))]]


def spliced(ops, rng, others):
    return ops[: rng.integers(len(ops))] + others[rng.integers(len(others)) :]


def noise(ops, rng, others):
    data = bytearray(b"".join(ops))
    for position in rng.integers(len(data), size=rng.integers(1, 20)):
        data[position] = rng.integers(256)
    return [bytes(data)]


def inserted(ops, rng, others):
    i = rng.integers(len(ops))
    return [*ops[:i], rng.bytes(rng.integers(1, 12)), *ops[i:]]


MUTATIONS = (
    changed_byte, other_opcode, deleted, repeated, moved, borrowed, other_argument, other_shape, cut, spliced, noise,
    inserted,
)  # fmt: skip


def _small(ops, rng) -> int:
    """An operation, likelier one whose bytes are structure: not the network's source code."""
    while True:
        i = rng.integers(len(ops))
        if len(ops[i]) < 10_000 or ops[i][:1] == b"B":
            return int(i)


def fuzz(count: int, seed: int, digits: Path, report=lambda done: None) -> tuple[Counter, list[str]]:
    """What became of `count` mutants, and everything that should not have."""
    rng = np.random.default_rng(seed)
    outcomes: Counter = Counter()
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = bases(folder, digits)
        cache = Cache(folder)
        path = folder / f"{key_of(URL)}_mutant.pkl"
        for done in range(count):
            base, other = every[rng.integers(len(every))], every[rng.integers(len(every))]
            mutation = MUTATIONS[done % len(MUTATIONS)]
            ops = base.ops
            for _ in range(rng.integers(1, 4)):
                if any(ops):  # there is nothing to change in nothing
                    ops = mutation(ops, rng, other.ops)
            data = b"".join(ops)
            path.write_bytes(data)
            about = f"mutant {done} of seed {seed} ({mutation.__name__})"
            started = time.perf_counter()
            try:
                tensors = read(path)
            except ConverterError as error:
                outcomes[mutation.__name__, "refused"] += 1
                if "\n" in str(error) or not str(error).startswith(f"{path}: "):
                    problems.append(f"{about} says {error!s:.300}")
            except BaseException as error:
                problems.append(f"{about} raises {error!r:.300}")
            else:
                with read_snapshot(path) as snapshot:
                    if wrong := difference(snapshot, data):
                        problems.append(f"{about}: {wrong}")
                same = tensors == base.tensors
                outcomes[mutation.__name__, "same tensors" if same else "other tensors"] += 1
                if not same:  # sound in itself: only a hash can tell
                    sound = hashlib.sha256(b"".join(base.ops)).hexdigest()
                    write_json(folder / f"{key_of(URL)}.json", {"sha256": sound})
                    try:
                        cache.find(URL).check()
                        problems.append(f"{about} has other tensors, and its hash does not tell")
                    except CacheError:
                        pass
            if time.perf_counter() - started > SECONDS:
                problems.append(f"{about} takes {time.perf_counter() - started:.1f} s")
            report(done + 1)
    return outcomes, problems


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    digits = ROOT / "golden" / "digits.pkl"

    def report(done):
        if done % 100 == 0 and sys.stderr.isatty():
            print(f"\r{done:,}", end="", file=sys.stderr)

    started = time.perf_counter()
    outcomes, problems = fuzz(args.mutants, args.seed, digits, report)
    kinds = ("refused", "same tensors", "other tensors")
    print(f"{'mutation':16}" + "".join(f"{kind:>15}" for kind in kinds))
    for mutation in MUTATIONS:
        print(f"{mutation.__name__:16}" + "".join(f"{outcomes[mutation.__name__, kind]:15,}" for kind in kinds))
    for problem in problems:
        print(f"PROBLEM {problem}")
    seconds = time.perf_counter() - started
    print(
        f"{args.mutants:,} mutants in {seconds:.0f} s: {len(problems)} problems; where tensors changed, the hash told"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
