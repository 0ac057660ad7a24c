"""A step of training in JAX beside torch_ref's, eager, by turns in one process; and what a step takes of memory.

    python -m tests.bench.training                           # the digits, batch 8 and 64
    python -m tests.bench.training --network edm2-img512-xs --batches 8 --parts 2 --rounds 2
    python -m tests.bench.training --memory edm2-img512-s --batches 4      # compiled, not run: with and without remat
    python -m tests.bench.training --memory edm2-img512-s --batches 8 --devices 8       # and with FSDP

The step is all of it: normalisation, loss, gradient of `--parts` of the batch one after the other, Adam, two averages.
"""

import argparse
import os
import statistics
import sys
import time

PARSER = argparse.ArgumentParser(prog="python -m tests.bench.training", description=__doc__.splitlines()[0])
PARSER.add_argument("--network", default="digits")
PARSER.add_argument("--memory", metavar="NETWORK")
PARSER.add_argument("--batches", type=int, nargs="+", default=[8, 64])
PARSER.add_argument("--parts", type=int, default=1)
PARSER.add_argument("--rounds", type=int, default=7)
PARSER.add_argument("--devices", type=int, default=1, help="simulated, for --memory")


def config_of(name: str):
    from golden.digits import CONFIG
    from jax_edm2.config import EDM2Config
    from jax_edm2.converter import presets

    return EDM2Config(**CONFIG) if name == "digits" else presets.config(presets.find(name).net)


def batch_of(config, count: int):
    import numpy as np

    rng, size = np.random.default_rng(0), config.img_resolution
    images = rng.standard_normal((count, config.img_channels, size, size), np.float32) / 2
    return images, np.eye(config.label_dim, dtype=np.float32)[rng.integers(config.label_dim, size=count)]


def jax_step(config, count: int, parts: int, remat: bool = False):
    """(step, state, what it takes besides): the step as edm2-train compiles it."""
    import jax

    import jax_edm2
    from jax_edm2.training import Recipe, begin, make_optimizer, train_step

    recipe = Recipe(batch_size=count)
    net, optimizer = jax_edm2.Precond(config, remat=remat), make_optimizer(recipe)
    images, labels = batch_of(config, count)

    def start(key):
        shape = images[:1].shape
        variables = net.init({"params": key, "constants": key}, jax.numpy.zeros(shape), jax.numpy.ones(1), labels[:1])
        return begin(variables, optimizer, recipe)

    def step(state, images, labels, key):
        return train_step(net, optimizer, recipe, state, images, labels, key, parts=parts)

    return jax.jit(step, donate_argnums=0), start, (images, labels, jax.random.key(1))


def jax_turns(config, count: int, parts: int):
    """A step whenever it is called, the first time compiled already."""
    import jax

    step, start, rest = jax_step(config, count, parts)
    state = jax.jit(start)(jax.random.key(0))
    compiled = step.lower(state, *rest).compile()
    now = [state]

    def turn():
        now[0], shown = compiled(now[0], *rest)
        jax.block_until_ready((now[0], shown))

    return turn


def torch_turns(config, count: int, parts: int):
    import torch

    from jax_edm2.torch_ref.network import Precond
    from jax_edm2.torch_ref.training import EDM2Loss, PowerFunctionEMA

    net = Precond(**config.to_json()).train().requires_grad_(True)
    adam, ema, loss = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99)), PowerFunctionEMA(net), EDM2Loss()
    images, labels = map(torch.from_numpy, batch_of(config, count))
    seen = 0

    def turn():
        nonlocal seen
        adam.zero_grad(set_to_none=True)
        for part in range(parts):
            each = slice(part * count // parts, (part + 1) * count // parts)
            (loss(net, images[each], labels[each]).sum() / count).backward()
        adam.step()
        seen += count
        ema.update(seen, count)

    return turn


def speed(args):
    print("| network | batch | parts | JAX, s | PyTorch, s | JAX is | GFLOP/s of JAX |\n|---|---|---|---|---|---|---|")
    from jax_edm2.converter.flops import multiply_accumulates

    config = config_of(args.network)
    for count in args.batches:
        turns = jax_turns(config, count, args.parts), torch_turns(config, count, args.parts)
        seconds: tuple[list[float], list[float]] = [], []
        for number in range(args.rounds + 1):
            for turn, found in zip(turns, seconds, strict=True):
                start = time.perf_counter()
                turn()
                if number:  # the first warms up
                    found.append(time.perf_counter() - start)
        ours, theirs = map(statistics.median, seconds)
        work = 6 * multiply_accumulates(config) * count / ours / 1e9
        cells = [args.network, str(count), str(args.parts), f"{ours:.3g}", f"{theirs:.3g}", f"{theirs / ours:.2f}x"]
        print(f"| {' | '.join([*cells, f'{work:.0f}'])} |", flush=True)


def memory(args):
    """Of compiled steps, by XLA's own account of a device: arguments and results, and what it holds besides."""
    import jax

    from jax_edm2.training import data_mesh, fully_sharded, replicated

    head = "network | batch | parts | devices | state | remat | state, GB | besides, GB"
    print(f"| {head} |\n|{'---|' * 8}")
    mesh = data_mesh()
    for count in args.batches:
        for place in (replicated, fully_sharded)[: 1 + (args.devices > 1)]:
            for remat in (False, True):
                step, start, rest = jax_step(config_of(args.memory), count, args.parts, remat)
                shapes = jax.eval_shape(start, jax.random.key(0))
                shardings = place(shapes, mesh)
                state = jax.tree_util.tree_map(
                    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
                )
                split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
                batch = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for x in rest[:2]]
                found = step.lower(state, *batch, rest[2]).compile().memory_analysis()
                cells = [args.memory, str(count), str(args.parts), str(args.devices), place.__name__, str(remat)]
                gb = f"{found.argument_size_in_bytes / 1e9:.2f} | {found.temp_size_in_bytes / 1e9:.2f}"
                print(f"| {' | '.join(cells)} | {gb} |", flush=True)


def main():
    args = PARSER.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    if args.memory:
        memory(args)
    else:
        speed(args)


if __name__ == "__main__":
    sys.exit(main())
