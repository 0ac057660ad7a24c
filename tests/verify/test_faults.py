"""Some faults of the corpus, of every kind, are detected and named; the network without a fault is not.

`make faults` tries all of them.
"""

import pytest

from tests.corpora.faults import FAULTS, Laboratory, checks_for, edited, found, is_found


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    return Laboratory(tmp_path_factory.mktemp("faults"))


def test_no_fault(laboratory):
    outcome = laboratory.examine(None, ("parameters", "forward", "gradients", "trajectory"))
    assert outcome.verdict == "agrees", outcome.reasons
    assert outcome.guilty == []
    assert outcome.exit_code == 0
    assert all(outcome.measurements.values())


@pytest.mark.parametrize("fault", FAULTS[::12], ids=lambda fault: fault.name)
def test_fault(laboratory, fault):
    outcome = laboratory.examine(fault, checks_for(fault))
    assert outcome.exit_code == 1
    assert is_found(fault, outcome), (found(fault, outcome), outcome.reasons)


def test_an_edit_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="has no"), edited("ops", "no such text", ""):
        pass
    with pytest.raises(ValueError, match="changes no function"), edited("network", "# ", "#  "):
        pass
