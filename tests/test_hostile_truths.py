"""Truth files and goldens that are broken, hostile or damaged: refused in one line, or what they were."""

import numpy as np
import pytest

from converter.errors import ConverterError
from converter.verify.golden import find_goldens
from converter.verify.truth import Truth, TruthError
from jax_edm2.messages import one_line
from tests import hostile
from tests.fuzz_truths import fuzz
from tests.hostile_truths import BALANCES, BY_COMMAND, GOLDENS, TRUTHS


def read_all(path):
    with Truth(path) as truth:
        return truth.facts, {key: truth[key] for key in truth.keys()}  # noqa: SIM118


def refused(case, path, read):
    case.build(path)
    with pytest.raises(ConverterError) as caught:
        read(path)
    assert case.says in one_line(str(caught.value))


@pytest.mark.parametrize("case", TRUTHS, ids=lambda case: case.name)
def test_truths(case, tmp_path):
    refused(case, tmp_path / "truth.npz", read_all)


@pytest.mark.parametrize("case", GOLDENS, ids=lambda case: case.name)
def test_goldens(case, tmp_path):
    refused(case, tmp_path / "goldens", find_goldens)


def test_each_has_a_name():
    names = [case.name for case in TRUTHS + GOLDENS]
    assert len(set(names)) == len(names) > 200
    assert set(names) >= BY_COMMAND


@pytest.mark.parametrize("case", [c for c in TRUTHS + GOLDENS if c.name in BY_COMMAND], ids=lambda case: case.name)
def test_by_command(case, tmp_path):
    (tmp_path / "input").mkdir()
    assert hostile.run(case, tmp_path / "input").problems == []


def test_bits_flipped(tmp_path):
    """Whatever bit of a truth file is flipped: it is refused, or means what it meant."""
    path = tmp_path / "truth.npz"
    data = BALANCES.read_bytes()
    path.write_bytes(data)
    facts, arrays = read_all(path)
    rng, refusals = np.random.default_rng(0), 0
    for position in rng.integers(len(data), size=300):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            found, values = read_all(path)
        except TruthError:
            refusals += 1
            continue
        assert found == facts
        assert values.keys() == arrays.keys()
        assert all(np.array_equal(values[key], arrays[key], equal_nan=True) for key in arrays)
    assert refusals > 200


def test_mutants(tmp_path):
    """Of truth.json, of headers and of the directory; make fuzz does more."""
    ends = fuzz(tmp_path, 300)
    assert sum(ends.values()) == 300
    assert ends["refused"] > 150
    assert len(ends) > 1  # some mean something else, and are judged by
