"""The denoiser of every published size, compiled for accelerators that are not here: a table of estimates.

python -m tests.surveys.accelerators                                   # all of it takes hours
python -m tests.surveys.accelerators --targets gpu:h100 --sizes xs,s   # needs the extras tpu-compile, gpu-compile
"""

import argparse
import json
import sys

from jax_edm2.converter import presets
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.verify.compiling.estimate import Estimate, estimate
from jax_edm2.converter.verify.compiling.job import Job
from jax_edm2.converter.verify.report.compiled import LABEL, versions

TARGETS = "tpu:v5e:1x1,tpu:v5p:1x1x1,tpu:v6e:1x1,gpu:a100,gpu:h100,gpu:h200"
PRECISIONS = "bfloat16,float32"
KIMG = {"xs": 2147483, "s": 2147483, "m": 2147483, "l": 1879048, "xl": 1342177, "xxl": 939524}
HEAD = "| target | size | precision | memory, GB | images that fit | kernels | transposes | roofline, ms | cycles, ms |"


def row(size: str, found: Estimate) -> str:
    cells = [found.target.text, size.upper(), found.job.precision]
    if found.error is not None:
        return " | ".join(["", *cells, found.error, *[""] * 5]).strip()
    cycles = "" if found.cycle_seconds is None else f"{found.cycle_seconds * 1e3:.1f} ({found.share_of_peak:.0%})"
    kernels, transposes = sum(found.counts["kernels"].values()), found.counts["transposes"]
    cells += [f"{found.bytes / 1e9:.2f}", f"{found.largest_batch:,}", f"{kernels:,}", f"{transposes}"]
    return "| " + " | ".join([*cells, f"{(found.roofline_seconds or 0) * 1e3:.1f}", cycles]) + " |"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.accelerators", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--sizes", default=",".join(KIMG))
    parser.add_argument("--precisions", default=PRECISIONS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", help="a file that gets a line of JSON for every program")
    args = parser.parse_args()
    print(f"One evaluation of the denoiser, img512, batch {args.batch}; {LABEL}\n\n{HEAD}\n|{'---|' * 9}", flush=True)
    failed = False
    for target in args.targets.split(","):
        for size in args.sizes.split(","):
            config = presets.config(f"edm2-img512-{size}-{KIMG[size]:07d}-0.100")
            for precision in args.precisions.split(","):
                try:
                    (found,) = estimate(Job(target, config, args.batch, precision))
                except ConverterError as error:
                    print(f"{target} {size}: {error}", file=sys.stderr)
                    failed = True
                    continue
                failed = failed or found.error is not None
                print(row(size, found), flush=True)
                if args.json:
                    with open(args.json, "a") as file:
                        print(json.dumps({"target": target, "size": size, **found.to_json()}), file=file)
    known = versions("tpu") | versions("gpu")
    print("\n" + ", ".join(f"{name} {version}" for name, version in known.items() if version != "not known"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
