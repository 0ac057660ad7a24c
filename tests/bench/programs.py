"""Programs on the device that is here: what they are made of, beside how long they take and what was estimated.

    python -m tests.bench.programs --networks edm2-img512-xs --device gpu --precision bfloat16 --batch 8

Random weights. One line of JSON for every program.
"""

import argparse
import json
import statistics
import sys
import time

from jax_edm2.converter import presets
from jax_edm2.converter.devices import start
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.compiling.estimate import estimate_of
from jax_edm2.converter.verify.compiling.job import DECODER, DENOISER, SAMPLER, Job
from jax_edm2.converter.verify.compiling.targets import Target
from jax_edm2.converter.verify.precision import PRECISIONS
from tests.bench.speed import DIGITS

RUNS = 10
KINDS = {"H100": "gpu:h100", "H200": "gpu:h200", "A100": "gpu:a100", "v5 lite": "tpu:v5e:1x1", "v6": "tpu:v6e:1x1",
         "v5": "tpu:v5p:1x1x1"}  # fmt: skip  # parts of jax.Device.device_kind, the first that is in it


def target_of(kind: str) -> Target | None:
    """The device as `edm2-verify --compile-for` knows it."""
    return next((Target.parse(text) for part, text in KINDS.items() if part in kind), None)


def measured(job: Job, name: str) -> dict:
    """A program compiled and run here, once warm and then RUNS times."""
    import jax
    import numpy as np

    from jax_edm2.converter.verify.compiling.programs import programs
    from jax_edm2.converter.verify.compiling.worker import figures

    device = jax.devices()[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    program = programs(job, device.platform, mesh)[name]()
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(program.arguments))))
    arguments = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), program.arguments)
    if name != DECODER:
        arguments = (arguments[0], *(None if value is None else abs(value) for value in arguments[1:]))
    started = time.perf_counter()
    with jax.default_matmul_precision(PRECISIONS[job.precision].matmul):
        compiled = jax.jit(program.function).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    times = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - started)
    found = {"program": name, "device": device.device_kind, "batch": job.batch, "precision": job.precision}
    found |= {"measured_seconds": statistics.median(times[1:]), "compile_seconds": seconds, **figures(compiled)}
    target = target_of(device.device_kind)
    if target is not None and job.precision in target.device.flops:
        estimated = estimate_of({**found, "seconds": seconds}, job, target)
        found |= {"target": target.text, "roofline_seconds": estimated.roofline_seconds, "bytes": estimated.bytes}
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.bench.programs", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["edm2-img512-xs"], metavar="NAME")
    parser.add_argument("--programs", nargs="+", default=[DENOISER], choices=(DENOISER, SAMPLER, DECODER))
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], default="cpu")
    parser.add_argument("--precision", choices=[*PRECISIONS], default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32, help="of the sampler")
    args = parser.parse_args(argv)
    start(args.device)
    for name in args.networks:
        if name == "digits":
            with read_snapshot(DIGITS) as snapshot:
                config = snapshot.config
        else:
            config = presets.config(presets.find(name).net)
        for program in args.programs:
            found = measured(Job("", config, args.batch, args.precision, (program,), args.steps), program)
            print(json.dumps({"network": name, **found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
