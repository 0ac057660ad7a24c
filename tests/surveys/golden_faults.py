"""`make golden-faults`: every fault of the corpus that changes numbers, and the golden that trips over it.

Faults in a checkpoint are not tried: goldens make their own weights, whose digests are recorded.
"""

import argparse
import dataclasses
import sys

import jax

from jax_edm2.converter.verify.golden.check import FOLDER, check_golden, check_records
from jax_edm2.converter.verify.truth import Truth
from tests.corpora.faults import FAULTS, Fault
from tests.support.laboratory import edited

ORDER = ("one-level", "options", "plain", "unconditional", "balances", "three-levels", "digits")
CHECKS = ("forward", "trajectory", "gradients", "training")
SILENT = {"a tap removed"}  # changes no number


def tripped(fault: Fault) -> tuple[str, str] | None:
    """(golden, what is wrong) of the first golden that disagrees."""
    if fault.operation == "ema/":
        with edited(*fault.edit):  # type: ignore[misc]
            wrong = [check for check in check_records() if not check.agrees]
        return (wrong[0].name, f"error {wrong[0].error:.1e}, allowed {wrong[0].limit:.1e}") if wrong else None
    first = fault.scope if fault.scope in CHECKS else "forward"
    for check in sorted(CHECKS, key=lambda check: check != first):
        for name in ORDER:
            with Truth(FOLDER / f"{name}.npz") as truth, edited(*fault.edit), jax.disable_jit():  # type: ignore[misc]
                truth.plan = dataclasses.replace(truth.plan, checks=(check,))
                outcome = check_golden(truth)
            if outcome.exit_code == 1:
                return name, outcome.reasons[0]
    return None


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.golden_faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    only = parser.parse_args().only
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    faults = [f for f in FAULTS if f.kind != "checkpoint" and f.name not in SILENT and only in f.name]
    missed = 0
    for fault in faults:
        found = tripped(fault)
        missed += found is None
        print(f"{fault.name[:51]:<52}{found[0] if found else 'MISSED':<15}{found[1][:90] if found else ''}", flush=True)
    print(f"\n{len(faults)} faults: {len(faults) - missed} trip a golden, {missed} do not")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
