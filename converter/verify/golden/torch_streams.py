"""How far `jax_edm2.torch_random` is from golden/torch_streams.json: what torch drew (`golden.torch_streams`)."""

import numpy as np

from jax_edm2.torch_random import TorchCPU, TorchCUDA

from .networks import DATA

RECORD = DATA / "torch_streams.json"
STREAMS = {"cpu": TorchCPU, "cuda": TorchCUDA}
CHURN = 2
BOUND = 7e-7  # of a value, on the CPU: measured 2.4e-7; on CUDA sines are approximate, and ten times that is allowed


def summary(noise):
    flat = np.asarray(noise, np.float64).reshape(-1)
    return {"first": flat[:8].tolist(), "last": flat[-8:].tolist(), "sum": flat.sum(), "magnitude": np.abs(flat).sum()}


def distance(device, record):
    """(the largest difference of a value, how many labels differ) between torch_random and a device's record."""
    seeds = record["seeds"]
    streams = STREAMS[device]([int(seed) for seed in seeds])
    shape = tuple(record["shape"])
    noise, labels = streams.randn(shape), streams.randint(1000)
    noises = [noise, *(streams.randn(shape) for _ in range(CHURN))]
    worst = 0.0
    for i, found in enumerate(seeds.values()):
        for ours, theirs in zip(noises, found["noises"], strict=True):
            mine = summary(ours[i])
            for name, scale in (("first", 1), ("last", 1), ("sum", ours[i].size), ("magnitude", ours[i].size)):
                worst = max(worst, float(np.abs(np.subtract(mine[name], theirs[name])).max()) / scale)
    wrong = sum(label != found["label"] for label, found in zip(labels.tolist(), seeds.values(), strict=True))
    return worst, wrong


def bound(device):
    """How far a value may be from the record."""
    return BOUND if device == "cpu" else 10 * BOUND
