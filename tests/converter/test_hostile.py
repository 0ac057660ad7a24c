"""Every broken or hostile input ends in its own one-line error, or in the right result, and in nothing else."""

import pytest

from tests.surveys.hostile import INPUTS, run


def test_there_are_many_and_each_has_a_name():
    assert len(INPUTS) >= 250
    assert len({(case.kind, case.name) for case in INPUTS}) == len(INPUTS)


@pytest.mark.parametrize("case", INPUTS, ids=lambda case: f"{case.kind}: {case.name}")
def test_hostile_input(case, tmp_path):
    (tmp_path / "input").mkdir()
    assert run(case, tmp_path / "input").problems == []
