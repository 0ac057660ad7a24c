"""Where a checkpoint and a truth come from: what was made from another snapshot is no evidence against anybody."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...convert import UNKNOWN
from ...weights import Weights
from ..parameter_hashes import hash_of
from ..request import VerifyError
from ..truth import Truth
from .candidate import Candidate
from .parameters import compare_parameters


def refuse_other_checkpoint(
    candidate: Candidate, name: str, sha256: str | None, expected: Callable[[], Mapping[str, Any]]
):
    """A checkpoint that says that it was made from another snapshot, and has other parameters than this one.

    name, sha256: of this one's file. expected: gives its parameters' hashes; it is asked where the files differ.
    Raises: VerifyError.
    """
    source = candidate.record.source if candidate.record else None
    if source is None or sha256 is None or source.sha256 in (sha256, UNKNOWN):
        return
    if candidate.config == candidate.net.config and compare_parameters(candidate.variables, expected()):
        raise VerifyError(
            f"{candidate.path}: was made from another snapshot ({source.name}, sha256 {source.sha256[:12]}...) than "
            f"{name} (sha256 {sha256[:12]}...): convert that one"
        )


def refuse_other_truth(path: Path, truth: Truth, snapshot: Weights):
    """Raises: VerifyError for a truth that was made from another snapshot."""
    made_from, found = truth.facts.snapshot, hash_of(snapshot.path)
    if found is not None and made_from["sha256"] not in (None, found):
        raise VerifyError(
            f"{path}: was made from another snapshot ({made_from['name']}, sha256 {made_from['sha256'][:12]}...) than "
            f"{snapshot.path} (sha256 {found[:12]}...): make it again with --save-truth"
        )
