"""What we accept is what torch's own unpickling would run; what NVlabs' code can write, we accept."""

import pytest

from tests.corpora.differential_cases import CASES, build, judge
from tests.surveys.differential import mutants


def test_there_are_many():
    assert sum(not legal for _, _, legal in CASES) >= 60


@pytest.mark.parametrize(("edit", "legal"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_case(edit, legal, tmp_path):
    assert judge(build(edit), tmp_path / "x.pkl") == (legal, None)


def test_mutants():
    outcomes, problems = mutants(150, 1)
    assert problems == []
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "accepted") > 30  # or it tests little
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "refused") > 60
