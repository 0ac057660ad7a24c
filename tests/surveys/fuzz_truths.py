"""Mutants of sound truth files and goldens: reading one, and judging by it, ends in our error or in a verdict.

    python -m tests.surveys.fuzz_truths --mutants 2000        # seeded

What truth.json says is changed and sealed again with the digest that is right for it; headers of members and the
archive's directory are changed as they are.
"""

import argparse
import functools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flax.traverse_util import unflatten_dict

from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.verify.golden import report as golden
from jax_edm2.converter.verify.golden.check import FOLDER
from jax_edm2.converter.verify.jax_side import examination, judgement
from jax_edm2.converter.verify.report.html import html
from jax_edm2.converter.verify.report.text import markdown, terminal, to_json
from jax_edm2.converter.verify.shapes import tap_shapes, unlabelled_shapes
from jax_edm2.converter.verify.taps import Tap
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.network import Precond
from jax_edm2.strict_json import dumps
from tests.support.json_mutants import mutants
from tests.support.truths import Parts, sealed


def bases() -> list[Parts]:
    """A truth, and a golden."""
    return [Parts.made_up(), Parts.of(FOLDER / "balances.npz")]


def changed(base: Parts, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, the file), half of it in truth.json."""
    for what, text in mutants(base.record, seed, count // 2):
        yield what, base.archive(sealed(text))
    rng = np.random.default_rng(seed)
    sound = base.archive()
    directory = sound.rindex(next(iter(base.members)).encode()) - 46
    for _ in range(count - count // 2):
        data = bytearray(sound)
        if rng.integers(2):
            name = list(base.members)[rng.integers(len(base.members))]
            start, end = sound.index(name.encode()) - 30, sound.index(name.encode()) + 230
            what = f"the header of {name}"
        else:
            start, end, what = directory, len(sound), "the directory"
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(start, min(end, len(sound)))] = rng.integers(256)
        yield what, bytes(data)


class Still:
    """In the place of a Candidate: every value is 0. What is tried here is what truth files do, not what JAX does."""

    def __init__(self, config: EDM2Config):
        self.config, self.net = config, Precond(config)
        leaves = {path: np.zeros(shape, np.float32) for path, shape in expected_tree(config).items()}
        self.variables = unflatten_dict(leaves, sep="/")
        self.tapped: Any = functools.partial(self._tapped)
        self.tapped.last = self.record = None

    def denoise(self, x, sigma, labels):
        return np.zeros_like(x), np.zeros((len(x), 1, 1, 1), np.float32)

    denoise_folded = denoise

    def denoise_and_keep(self, names, x, sigma, labels):
        shapes = tap_shapes(self.config, len(x))
        return self.denoise(x, sigma, labels), {name: np.zeros(shapes[name], np.float32) for name in names}

    def differentiate(self, variables, case):
        return 0.0, (variables["params"], np.zeros_like(case.noise))

    def trajectory(self, plan, keep=None):
        c, r = self.config.img_channels, self.config.img_resolution
        return [np.zeros((1, c, r, r))] * (plan.steps + 1)

    def _tapped(self, x, sigma, labels, visit, amplify=None):
        shapes = tap_shapes(self.config, len(x)) if labels is not None else unlabelled_shapes(self.config, len(x))
        for name, shape in shapes.items():
            visit(Tap(*name.rsplit("/", 1)), np.zeros(shape, np.float32))


STILL = {"project_to_sphere": lambda variables: variables, "_training_step": lambda new, gradient, size: (new, new)}


def outcome_of(path: Path) -> str:
    """refused, or the verdict, after every kind of report was made of it. Raises: what nobody expects."""
    try:
        with Truth(path) as truth:
            found = judgement.judge(Still(truth.config), truth)
    except ConverterError as error:
        return "refused" if str(error).startswith(f"{path}: ") else f"refused as {error}"
    record = to_json(found)
    for line in [dumps(record), *terminal(record)]:
        assert "\n" not in line
    assert markdown(record)
    assert html(record).encode()
    if found.truth.golden:
        assert [*golden.terminal([found], []), dumps(golden.to_json([found], []))]
    return found.verdict


def fuzz(folder: Path, count: int, seed: int = 0) -> Counter:
    """How many of `count` mutants ended how."""
    path, ends = folder / "mutant.npz", Counter()
    switches = functools.cache(judgement.jax_switches)  # probes are compiled anew every time
    with mock.patch.object(judgement, "jax_switches", switches), mock.patch.multiple(examination, **STILL):
        for base in bases():
            for what, data in changed(base, seed, count // 2):
                path.write_bytes(data)
                try:
                    ends[outcome_of(path)] += 1
                except Exception as error:
                    raise AssertionError(f"seed {seed}: {what}: {error!r:.300}") from error
    return ends


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.fuzz_truths", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends = fuzz(Path(folder), args.mutants, args.seed)
    print(", ".join(f"{count} {end}" for end, count in ends.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
