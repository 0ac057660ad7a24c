"""Records how likely held-out digits are: golden/likelihood.json, by another way than jax_edm2.diffrax's.

    python -m golden.likelihood            # print it, and write the file: ten minutes
    python -m golden.likelihood --check    # how far jax_edm2.diffrax is from the record

PyTorch in float64 (torch_ref), the trace of the derivative row by row with autograd, and scipy's DOP853 along ln sigma
with errors of 1e-8 in a step.
"""

import argparse
import json
import math
import sys

import numpy as np

from jax_edm2.converter.pretrained import from_pretrained
from jax_edm2.converter.processes import ROOT

RECORD = ROOT / "golden" / "likelihood.json"
LEVELS = 0.002, 80.0
BOUND = 1e-4  # bits per dimension; measured: 1.6e-5
CLASSES = 3, 7


def nats(net, image, label):
    """ln p of an image [1, H, W] from -1 to 1, and its noise, integrated in float64."""
    import torch
    from scipy.integrate import solve_ivp

    size = image.size
    labels = torch.from_numpy(label).double().expand(size, -1)
    low, high = LEVELS

    def flow(log_sigma, state):
        sigma = math.exp(log_sigma)
        x = torch.from_numpy(state[:-1]).reshape(image.shape).expand(size, *image.shape).clone().requires_grad_()
        denoised = net(x, torch.tensor([sigma], dtype=torch.float64), labels)
        (rows,) = torch.autograd.grad(denoised.flatten(1).diagonal().sum(), x)  # a row of the derivative for each copy
        trace = rows.flatten(1).diagonal().sum().item()
        return np.append(state[:-1] - denoised[0].detach().flatten().numpy(), size - trace)

    start = np.append(image.flatten(), 0.0)
    end = solve_ivp(flow, (math.log(low), math.log(high)), start, "DOP853", rtol=1e-8, atol=1e-8).y[:, -1]
    noise = end[:-1] / high
    return end[-1] - (noise @ noise + size * math.log(2 * math.pi * high**2)) / 2, noise


def distance(net, variables, found):
    """How far `jax_edm2.diffrax.log_likelihood` is from the record: bits per dimension, and its noise."""
    import jax
    import jax.numpy as jnp

    import jax_edm2

    pictures = np.array([digit["picture"] for digit in found], np.float32).reshape(-1, 1, 8, 8)
    images = jnp.asarray(pictures / 127.5 - 1)
    labels = jax.nn.one_hot(jnp.array([digit["class"] for digit in found]), 10)
    denoise = jax_edm2.denoiser(net, variables, labels)
    nats, noise = jax.jit(lambda images: jax_edm2.diffrax.log_likelihood(denoise, images))(images)
    bits, exact = (
        jax_edm2.diffrax.bits_per_dim(np.asarray(value), images) for value in (nats, [digit["nats"] for digit in found])
    )
    recorded = np.array([digit["noise"] for digit in found])
    return float(np.abs(bits - exact).max()), float(np.abs(noise.reshape(recorded.shape) - recorded).max())


def record():
    from golden.digits import digits, load_network

    net = load_network(ROOT / "golden" / "digits.pkl").double().requires_grad_(False)
    _, images, _, labels = digits()
    found = []
    for index in CLASSES:
        picture = images[np.flatnonzero(labels == index)[0]]
        value, noise = nats(net, picture / 127.5 - 1, np.eye(10)[[index]])
        found.append({"class": index, "picture": picture.flatten().tolist(), "nats": value, "noise": noise.tolist()})
        print(f"class {index}: {value:.6f} nats")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.likelihood", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    found = json.loads(RECORD.read_text()) if args.check else record()
    if not args.check:
        RECORD.write_text(json.dumps(found) + "\n")
    model = from_pretrained(ROOT / "golden" / "digits.pkl")
    error, noise = distance(model.net, model.variables, found)
    print(f"bits per dimension differ by {error:.1e}, noise by {noise:.1e}")
    return 0 if error <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
