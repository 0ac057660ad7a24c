"""Images per second of jax_edm2.sample, beside the loops that people write by hand, in PyTorch and in JAX.

    python -m tests.bench_sample                                                # the digits, and XS; on a CPU, minutes
    python -m tests.bench_sample --networks edm2-img512-s --batch 16 --steps 32 --device gpu --precision float16

- JAX, one program: `jax_edm2.sample`: weights folded, the whole trajectory compiled as one.
- JAX, loop: a jitted net.apply with variables as loaded, in a loop in Python.
- PyTorch: torch_ref's loop, eager.

All three sample the same noise, deterministic Heun. Each is run once, which is where it compiles, and then in turns;
seconds are medians of the rounds, ratios of the same round.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads leave the cores when it is JAX's turn

import jax
import jax.numpy as jnp
import numpy as np
import torch

from converter.cli.devices import start
from converter.convert import in_memory
from converter.snapshot import read_snapshot
from jax_edm2.network import Precond
from jax_edm2.sampling import Settings, heun_states, sample
from torch_ref import sampling as reference
from torch_ref.network import Precond as TorchPrecond
from torch_ref.snapshot import published_config, randomize, write_snapshot

DIGITS = Path(__file__).parent.parent / "golden" / "digits.pkl"
NETWORKS = [("digits", 64, 32), ("edm2-img512-xs", 1, 8)]  # on a CPU: name, batch, steps


def load(name, folder, dtype, device):
    """((net, variables) in JAX, network in PyTorch) of the digits, or of a published size with random weights."""
    path = DIGITS
    if name != "digits":
        path = folder / f"{name}.pkl"
        net = TorchPrecond(**published_config(name)[0]).requires_grad_(False)
        write_snapshot(path, randomize(net), dtype=torch.float16)
    with read_snapshot(path) as snapshot:
        tensors = {name: torch.from_numpy(snapshot.read(name)).float() for name in snapshot.tensors}
        theirs = TorchPrecond(**snapshot.init_kwargs)
        theirs.load_state_dict(tensors)
        return (Precond(snapshot.config, jnp.dtype(dtype)), in_memory(snapshot, None)), theirs.to(device).eval()


def ways(network, theirs, noise, labels, steps, precision, device):
    """The three ways to sample, as functions that return when the images are there, as numpy arrays."""
    net, variables = network
    denoise = jax.jit(net.apply)
    dtype = getattr(torch, precision)
    torch_noise, torch_labels = (torch.from_numpy(v).to(device) for v in (noise, labels))
    sigmas = reference.noise_levels(steps)

    def loop():
        *_, x = heun_states(lambda x, s: denoise(variables, x, s, labels), jnp.asarray(noise), sigmas)
        return np.asarray(x)

    def eager():
        with torch.inference_mode():
            return reference.heun(
                lambda x, s: theirs(x, s.to(device), torch_labels, dtype=dtype), torch_noise, sigmas
            ).cpu().numpy()  # fmt: skip

    settings = Settings(num_steps=steps)
    return {
        "JAX, one program": lambda: np.asarray(sample(net, variables, noise, labels, settings=settings)),
        "JAX, loop": loop,
        "PyTorch": eager,
    }


def bench(name, batch, steps, args, folder):
    device = "cuda" if args.device == "gpu" else "cpu"
    network, theirs = load(name, folder, args.precision, device)
    config, rng = network[0].config, np.random.default_rng(0)
    shape = batch, config.img_channels, config.img_resolution, config.img_resolution
    noise = rng.standard_normal(shape).astype(np.float32)
    labels = np.eye(config.label_dim, dtype=np.float32)[rng.integers(config.label_dim, size=batch)]
    runs, first, images = {}, {}, {}
    all_ways = ways(network, theirs, noise, labels, steps, args.precision, device)
    for way, run in all_ways.items():
        began = time.perf_counter()
        images[way] = run()
        first[way], runs[way] = time.perf_counter() - began, []
    for _ in range(args.rounds):
        for way, run in all_ways.items():
            began = time.perf_counter()
            run()
            runs[way].append(time.perf_counter() - began)
    print(
        f"\n{name}: batch {batch}, {steps} Heun steps, {args.precision}, {args.device}, median of {args.rounds} rounds"
    )
    print(f"{'':18}{'images/s':>9}{'of PyTorch':>12}{'seconds':>9}{'the first time':>16}{'apart from PyTorch':>20}")
    for way, seconds in runs.items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(seconds, runs["PyTorch"], strict=True))
        apart = np.abs(images[way] - images["PyTorch"]).max()
        median = statistics.median(seconds)
        print(f"{way:18}{batch / median:9.3g}{ratio:12.2f}{median:9.2f}{first[way]:16.2f}{apart:20.1e}", flush=True)


def main(argv=None):
    import tempfile

    parser = argparse.ArgumentParser(prog="python -m tests.bench_sample", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="default: digits, and XS with random weights")
    parser.add_argument("--batch", type=int, help="default: 64 for the digits, else 1")
    parser.add_argument("--steps", type=int, help="default: 32 for the digits, else 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "float16", "bfloat16"], default="float32")
    args = parser.parse_args(argv)
    start(args.device)
    defaults = {name: (batch, steps) for name, batch, steps in NETWORKS}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks or defaults:
            batch, steps = defaults.get(name, NETWORKS[-1][1:])
            bench(name, args.batch or batch, args.steps or steps, args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
