"""Compiles programs for a target in a process of its own, whose JAX stays on the CPU.

    python -m converter.verify.compiling.worker < JOB.json

A line of JSON for every program: {"program", "seconds", "memory", "cost", "counts"} or {"program", "error"}.
"""

import json
import math
import sys
import time
from typing import Any

from .job import Job
from .targets import Target
from .text import count

MESSAGE = 300  # characters of an error


def main():
    job = Job.from_json(sys.stdin.read())
    target = Target.parse(job.target)
    import jax
    from jax.sharding import AxisType, Mesh

    from ..precision import PRECISIONS
    from .programs import programs

    try:
        chips = _chips(target)
    except Exception as error:
        _say({"error": _line(error)})
        return
    mesh = Mesh(chips, ("data",), axis_types=(AxisType.Auto,))
    platform = {"tpu": "tpu", "gpu": "cuda"}[target.device.platform]
    for name, make in programs(job, target.device.platform, mesh).items():
        if name not in job.programs:
            continue
        started = time.perf_counter()
        try:
            program = make()
            with jax.default_matmul_precision(PRECISIONS[job.precision].matmul):
                jitted = jax.jit(program.function, donate_argnums=program.donated)
                compiled = jitted.trace(*program.arguments).lower(lowering_platforms=(platform,)).compile()
        except Exception as error:
            _say({"program": name, "error": _line(error)})
            continue
        _say({"program": name, "seconds": round(time.perf_counter() - started, 1), **figures(compiled)})


def figures(compiled: Any) -> dict[str, Any]:
    """What a compiled program says of itself: memory, cost and counts."""
    memory = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    sizes = ("argument", "output", "alias", "temp", "generated_code")
    return {
        "memory": {size: int(getattr(memory, f"{size}_size_in_bytes")) for size in sizes} if memory else None,
        "cost": {key: cost.get(key) for key in ("flops", "bytes accessed")},
        "counts": count(compiled.as_text()).to_json(),
    }


def _chips(target: Target) -> Any:
    """The devices of a topology that is not here."""
    import numpy as np
    from jax.experimental import topologies

    device = target.device
    if device.platform == "tpu":
        name = f"{device.details['topology']}:{'x'.join(map(str, target.shape))}"
        more = {"chips_per_host_bounds": target.shape + (1,) * (3 - len(target.shape))} if target.chips == 1 else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    else:
        found = topologies.get_topology_desc(
            device.key, platform="cuda", target_config=_description(device), topology=f"1x1x{target.chips}"
        )
    chips: Any = np.array(found.devices).reshape(-1)
    return chips[: math.prod(target.shape)]


def _description(device: Any) -> str:
    """A GpuTargetConfigProto as text, whose fields are in device_description.proto of openxla/xla."""
    d = device.details
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {d["shared_per_core"]} threads_per_core_limit: 2048 core_count: {d["cores"]}
  fpus_per_core: {d["fpus"]} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(device.bandwidth)} l2_cache_size: {d["l2"]} clock_rate_ghz: {d["clock_ghz"]}
  device_memory_size: {d["bytes"]} shared_memory_per_block_optin: {d["shared_per_block_optin"]}
  cuda_compute_capability {{ major: {d["capability"]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{device.name}"
"""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:MESSAGE] or type(error).__name__


def _say(found: dict[str, Any]):
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
