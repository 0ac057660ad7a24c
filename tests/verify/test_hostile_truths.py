"""Truth files and goldens that are broken, hostile or damaged: refused in one line, or what they were."""

import copy
import json
import math
import zipfile

import numpy as np
import pytest

from jax_edm2.config import EDM2Config
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.verify.archive import MOST_MEMBERS
from jax_edm2.converter.verify.cases import Plan, PlanError
from jax_edm2.converter.verify.facts import Facts
from jax_edm2.converter.verify.golden.check import find_goldens
from jax_edm2.converter.verify.truth import MOST_BYTES, MOST_VALUES, Truth, TruthError, TruthWriter, _Record
from jax_edm2.messages import one_line
from tests.corpora import hostile_goldens, hostile_truths
from tests.corpora.hostile_goldens import BALANCES
from tests.support.truths import PLAN, SMALL, Parts, sealed, training_of, values
from tests.support.truths import arrays as arrays_of
from tests.support.truths import facts as facts_of
from tests.surveys import hostile
from tests.surveys.fuzz_truths import fuzz

ALL = hostile_truths.INPUTS + hostile_goldens.INPUTS
BY_COMMAND = hostile_truths.BY_COMMAND | hostile_goldens.BY_COMMAND


def read_all(path):
    with Truth(path) as truth:
        return truth.facts, {key: truth[key] for key in truth.keys()}  # noqa: SIM118


def refused(case, path, read):
    case.build(path)
    with pytest.raises(ConverterError) as caught:
        read(path)
    assert case.says in one_line(str(caught.value))


@pytest.mark.parametrize("case", hostile_truths.INPUTS, ids=lambda case: case.name)
def test_truths(case, tmp_path):
    refused(case, tmp_path / "truth.npz", read_all)


@pytest.mark.parametrize("case", hostile_goldens.INPUTS, ids=lambda case: case.name)
def test_goldens(case, tmp_path):
    refused(case, tmp_path / "goldens", find_goldens)


def test_each_has_a_name():
    names = [case.name for case in ALL]
    assert len(set(names)) == len(names) > 200
    assert set(names) >= BY_COMMAND


@pytest.mark.parametrize("case", [c for c in ALL if c.name in BY_COMMAND], ids=lambda case: case.name)
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
    for position in rng.integers(len(data), size=100):
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
    assert refusals > 66


def test_mutants(tmp_path):
    """Of truth.json, of headers and of the directory; make fuzz does more."""
    ends = fuzz(tmp_path, 80)
    assert sum(ends.values()) == 80
    assert ends["refused"] > 40
    assert len(ends) > 1  # some mean something else, and are judged by


# What must be accepted


def test_made_up_truths_are_read(tmp_path):
    path = tmp_path / "truth.npz"
    parts = Parts.made_up()
    path.write_bytes(parts.archive())
    facts, arrays = read_all(path)
    assert len(arrays) == len(parts.members)
    assert facts.errors == parts.facts["errors"]


def test_what_is_written_is_read(tmp_path):
    """Values to their last bit, numbers that JSON lacks, long texts; and numpy reads the file as any .npz."""
    path, parts = tmp_path / "truth.npz", Parts.made_up()
    facts = facts_of_small(repeat=math.inf, seconds=math.nan, environment={"torch": "x" * 5000, "device": "cpu"})
    facts.errors["seed0"]["isolated"]["input/c_noise"]["error"] = math.nan
    with TruthWriter(path) as writer:
        for key, (dtype, shape) in arrays_of(SMALL, PLAN).items():
            assert key not in writer
            value = values(key, dtype, shape)
            writer[key] = value.T.copy().T  # in another order
            assert key in writer
            assert np.array_equal(writer[key], value)
        writer.finish(facts)
    found, arrays = read_all(path)
    assert (found.repeat, len(found.environment["torch"])) == (math.inf, 1000)
    assert math.isnan(found.seconds)
    assert math.isnan(found.errors["seed0"]["isolated"]["input/c_noise"]["error"])
    with np.load(path) as read:
        for key, value in arrays.items():
            assert value.tobytes() == read[key].tobytes() == parts.members[f"{key}.npy"][-value.nbytes :]
            assert (value.dtype, value.shape) == (read[key].dtype, read[key].shape)


@pytest.mark.parametrize("limit", [0, 50_000])
def test_archives_beyond_4_gb(limit, tmp_path, monkeypatch):
    """What zipfile writes beyond its limit, with the limit brought down."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    path = tmp_path / "truth.npz"
    path.write_bytes(Parts.made_up().archive())
    assert path.read_bytes()[-98:-94] == b"PK\6\6"
    assert len(read_all(path)[1]) == len(Parts.made_up().members)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruthError, match="cut short"):
        read_all(path)


def facts_of_small(**changed):
    return Facts(
        **copy.deepcopy(facts_of(SMALL, PLAN))
        | {"plan": PLAN, "config": SMALL, "training": training_of(PLAN)}
        | changed
    )


def test_what_would_be_refused_is_not_written(tmp_path):
    with TruthWriter(tmp_path / "truth.npz") as writer:
        for key, what in arrays_of(SMALL, PLAN).items():
            writer[key] = values(key, *what)
        with pytest.raises(TruthError, match="would be refused: repeat must not be below 0"):
            writer.finish(facts_of_small(repeat=-1.0))


def test_a_fork_may_have_other_taps(tmp_path):
    """What the source embedded in a snapshot has otherwise is a finding, not a damage."""
    path, parts = tmp_path / "truth.npz", Parts.made_up()
    parts.facts["reference"] = "embedded"
    tap = "unet.enc.4x4_conv/conv"
    for kind in ("accumulated", "isolated"):
        del parts.facts["errors"]["seed0"][kind][tap]
    del parts.record["members"][f"seed0/{tap}"], parts.members[f"seed0/{tap}.npy"]
    parts.put("seed0/input/scaled_input", np.zeros((2, 4, 4, 1)))
    path.write_bytes(parts.archive())
    assert read_all(path)[0].reference == "embedded"
    parts.put("trajectory", np.zeros((3, 1, 4, 4, 1)))  # what it returns is the network's
    path.write_bytes(parts.archive())
    with pytest.raises(TruthError, match="which should be"):
        read_all(path)


@pytest.mark.parametrize("seeds", [1, 32])
def test_bounds_leave_room_for_large_networks(seeds):
    """XXL has the taps that S has; measured: 0.36 MB and 15,000 values, with 32 seeds 5.6 MB and 240,000."""
    config, plan = EDM2Config(64, 4, 1000, model_channels=448), Plan(seeds=tuple(range(seeds)))
    arrays = arrays_of(config, plan)
    record = {"members": {key: [*what, "0" * 64] for key, what in arrays.items()}, "facts": facts_of(config, plan)}
    text = sealed(json.dumps(record).encode())
    assert len(_Record(text).members) == len(arrays) < MOST_MEMBERS / 3
    assert len(text) < MOST_BYTES / 4
    assert text.count(b",") + text.count(b"[") + text.count(b"{") < MOST_VALUES / 4


def test_plans_are_bounded_as_the_command_line_is():
    for name, good, bad in (("batch", 65536, 65537), ("steps", 10_000, 10_001), ("seeds", (10**18 - 1,), (10**18,))):
        Plan(**{name: good}).check()
        with pytest.raises(PlanError, match=name):
            Plan(**{name: bad}).check()
