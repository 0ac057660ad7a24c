"""Some faults of the corpus, of every kind, are detected and named; the network without a fault is not.

`make faults` tries all of them.
"""

import pytest

from jax_edm2.converter.processes import ROOT
from tests.corpora.faults import FAULTS, TRAINING
from tests.support.laboratory import ALL, checks_for, edited, found, is_found


def test_no_fault(laboratory):
    outcome = laboratory.examine(None, ALL)
    assert outcome.verdict == "agrees", outcome.reasons
    assert outcome.guilty == []
    assert outcome.exit_code == 0
    assert all(found for check, found in outcome.measurements.items() if check in ALL)


@pytest.mark.parametrize("fault", [*FAULTS[: -len(TRAINING)][::12], TRAINING[7]], ids=lambda fault: fault.name)
def test_fault(laboratory, fault):
    outcome = laboratory.examine(fault, checks_for(fault))
    assert outcome.exit_code == 1
    assert is_found(fault, outcome), (found(fault, outcome), outcome.reasons)


def test_an_edit_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="has no"), edited("ops", "no such text", ""):
        pass
    with pytest.raises(ValueError, match="changes no function"), edited("network", "# ", "#  "):
        pass


def test_what_faults_replace_is_there():
    """Of all, not only of those that are made here."""
    for fault in FAULTS:
        edits = [fault.edit] if isinstance(fault.edit, tuple) and isinstance(fault.edit[0], str) else fault.edit
        for edit in edits if isinstance(edits, list | tuple) else ():
            if isinstance(edit, tuple):
                file, old = edit[:2]
                assert old in (ROOT / "jax_edm2" / f"{file.replace('.', '/')}.py").read_text(), fault.name
