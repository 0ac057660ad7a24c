"""`make faults`: every fault of the corpus, and what edm2-verify says to it.

python -m tests.surveys.faults                         # the table of all faults and verdicts
python -m tests.surveys.faults --as tpu:float32        # found in what a TPU would compute, emulated
python -m tests.surveys.faults --only training
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax

from jax_edm2.converter.verify.jax_side.emulation import emulated
from tests.corpora.faults import FAULTS
from tests.support.laboratory import ALL, Laboratory, checks_for, found, is_found


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--as", dest="mode", default="float32", help="emulated: tpu:float32, gpu:tf32, ...")
    parser.add_argument("--only", default="", help="faults whose name, or scope, has this in it")
    args = parser.parse_args()
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    missed = 0
    device, _, precision = args.mode.rpartition(":")
    with tempfile.TemporaryDirectory() as folder, emulated(device or None):
        laboratory = Laboratory(Path(folder), precision)
        clean = laboratory.examine(None, ALL)
        print(f"no fault: {clean.verdict}\n")
        print(f"{'fault':<52}{'verdict':<11}{'first bad operation':<34}error")
        faults = [fault for fault in FAULTS if args.only in fault.name or args.only in fault.scope]
        for fault in faults:
            outcome = laboratory.examine(fault, checks_for(fault))
            scope, operation = found(fault, outcome)
            ok = is_found(fault, outcome)
            missed += not ok
            why = next((g.why for g in outcome.guilty), None) or next(iter(outcome.reasons), "")
            place = f"{scope.removeprefix('unet.')}, {operation}"
            print(
                f"{fault.name[:51]:<52}{outcome.verdict:<11}{place[:43]:<34}{'' if ok else 'MISSED '}{why[:60]}",
                flush=True,
            )
    print(f"\n{len(faults)} faults: {len(faults) - missed} detected and named, {missed} missed")
    return 1 if missed or clean.verdict != "agrees" else 0


if __name__ == "__main__":
    sys.exit(main())
