"""A throughput worker that also runs code that is not ours: the networks of other projects, from clones of them.

python -m tests.bench.worker [--nvlabs DIR] [--jax-edm2 DIR] torch < JOB.json       # and then as any worker
"""

import argparse
import sys

from jax_edm2.converter import processes
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.throughput.job import Job, Run
from jax_edm2.converter.verify.throughput.serve import serve

NVLABS, JAX_EDM2 = "NVlabs", "jax-edm2"  # github.com/NVlabs/edm2, github.com/nmboffi/jax-edm2


def command(nvlabs: str | None, jax_edm2: str | None) -> list[str]:
    """What starts this worker. nvlabs, jax_edm2: folders of the clones."""
    found = processes.module("tests.bench.worker")
    for option, folder in (("--nvlabs", nvlabs), ("--jax-edm2", jax_edm2)):
        if folder is not None:
            found += [option, folder]
    return found


def nvlabs_network(framework, job: Job, folder: str) -> Run:
    """NVlabs' network with the weights of our PyTorch network."""
    sys.path.insert(0, folder)
    from training.networks_edm2 import Precond

    with read_snapshot(job.snapshot) as snapshot:
        net = Precond(**{**snapshot.init_kwargs, "use_fp16": job.precision == "float16"})
    if job.precision not in ("float32", "tf32", "float16"):
        raise ValueError(f"has no {job.precision}")
    net.load_state_dict(framework.reference.net.state_dict())
    return framework.runner(net.to(framework.device).eval().requires_grad_(False))


def jax_edm2_network(framework, job: Job, folder: str) -> Run:
    """jax-edm2's network, which takes our variables as they are."""
    import jax
    import jax.numpy as jnp

    sys.path.insert(0, folder)
    import edm2_net

    config, dtype = framework.net.config, framework.net.dtype
    names = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")
    net = edm2_net.PrecondUNet(
        config.img_resolution,
        config.img_channels,
        config.label_dim,
        config.sigma_data,
        config.logvar_channels,
        use_bfloat16=dtype == jnp.bfloat16,
        unet_kwargs={name: getattr(config, name) for name in names}
        | {"use_fourier": True, "fourier_bandwidth": 1.0, "block_kwargs": {}},
    )
    if dtype == jnp.float16:
        raise ValueError("has no float16")
    call = jax.jit(lambda variables, x, sigma, labels: net.apply(variables, sigma, x, labels, train=False))
    return framework.runner(call, framework.variables, *framework.arguments)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("framework", choices=["torch", "jax"])
    parser.add_argument("--nvlabs")
    parser.add_argument("--jax-edm2")
    args = parser.parse_args()

    def more(framework, job):
        if args.framework == "torch" and args.nvlabs:
            return {NVLABS: lambda: nvlabs_network(framework, job, args.nvlabs)}
        if args.framework == "jax" and args.jax_edm2:
            return {JAX_EDM2: lambda: jax_edm2_network(framework, job, args.jax_edm2)}
        return {}

    serve(args.framework, more)


if __name__ == "__main__":
    main()
