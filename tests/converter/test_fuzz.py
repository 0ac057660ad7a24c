"""A part of what `make fuzz` does."""

from tests.surveys import fuzz_states
from tests.surveys.fuzz import fuzz


def test_mutants(digits_pkl):
    outcomes, problems = fuzz(500, 1, digits_pkl)
    assert problems == []
    assert sum(outcomes.values()) == 500
    assert sum(count for (_, outcome), count in outcomes.items() if outcome != "refused") > 5  # or it tests little


def test_mutants_of_training_states():
    outcomes, problems = fuzz_states.fuzz(150, 1)
    assert problems == []
    assert sum(outcomes.values()) == 150
    assert sum(count for (_, outcome), count in outcomes.items() if outcome != "refused") > 6
