"""`make demo`: the digits snapshot becomes a JAX network, and both frameworks compute the same.

Converts golden/digits.pkl with edm2-convert, runs PyTorch and JAX in float32 on fixed seeds, prints their errors
against PyTorch in float64, and draws a digit of each class with both from the same noise.
"""

import argparse
import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import torch

import jax_edm2
from jax_edm2.converter import processes
from jax_edm2.torch_ref.encoders import StandardRGBEncoder
from jax_edm2.torch_ref.sampling import heun, noise_levels

from .digits import contact_sheet, load_network, one_hot

SNAPSHOT = Path(os.path.relpath(Path(__file__).with_name("digits.pkl")))
SIGMAS = (0.002, 0.05, 0.3, 1.0, 4.0, 20.0, 80.0)
SEEDS = 4
BOUND = 3e-6  # of the relative error; measured: 5e-7 at most


def relative_error(x, truth):
    x, truth = (np.asarray(value, np.float64) for value in (x, truth))
    return np.linalg.norm(x - truth) / np.linalg.norm(truth)


def compare(reference, denoise):
    """Print a table of errors and return whether all of them are within bounds."""
    truth = copy.deepcopy(reference).double()
    print(f"{'sigma':>7}  {'labels':>6}  {'D: PyTorch':>11} {'JAX':>8}   {'logvar: PyTorch':>15} {'JAX':>8}")
    agree = True
    for sigma in SIGMAS:
        for labelled in (True, False):
            rng = np.random.default_rng(SEEDS)
            x = rng.standard_normal((10 * SEEDS, 1, 8, 8)) * math.hypot(sigma, reference.sigma_data)
            labels = one_hot(np.arange(10 * SEEDS) % 10) if labelled else None
            arguments = torch.as_tensor(x, dtype=torch.float32), torch.full([10 * SEEDS], sigma), labels
            with torch.no_grad():
                exact, ours = truth(*arguments, return_logvar=True), reference(*arguments, return_logvar=True)
            theirs = denoise(*(None if value is None else value.numpy() for value in arguments))
            errors = [(relative_error(t, e), relative_error(j, e)) for e, t, j in zip(exact, ours, theirs, strict=True)]
            agree &= all(j <= BOUND for _, j in errors)
            (d_torch, d_jax), (u_torch, u_jax) = errors
            name = "0-9" if labelled else "none"
            print(f"{sigma:7g}  {name:>6}  {d_torch:11.1e} {d_jax:8.1e}   {u_torch:15.1e} {u_jax:8.1e}")
    return agree


def draw(reference, denoise):
    """Samples [10, 1, 8, 8] of PyTorch and of JAX, one per class, from the same noise."""
    labels = one_hot(np.arange(10))
    noise = torch.randn([10, 1, 8, 8], generator=torch.Generator().manual_seed(0))

    def jax_denoiser(x, sigma):
        return torch.from_numpy(np.array(denoise(x.numpy(), np.full(10, sigma, np.float32), labels.numpy())[0]))

    drawn = heun(lambda x, sigma: reference(x, sigma, labels), noise, noise_levels())
    return drawn.numpy(), heun(jax_denoiser, noise, noise_levels()).numpy()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--outdir", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    outdir = parser.parse_args(argv).outdir
    outdir.mkdir(parents=True, exist_ok=True)
    checkpoint, picture = outdir / "digits.safetensors", outdir / "digits.png"

    command = ["edm2-convert", str(SNAPSHOT), "-o", str(checkpoint), "--force"]
    print("$", *command, flush=True)
    subprocess.run([*processes.module("jax_edm2.converter.cli.convert"), *command[1:]], check=True)

    net, variables = jax_edm2.load(checkpoint)
    apply = jax.jit(lambda x, sigma, labels: net.apply(variables, x, sigma, labels, return_logvar=True))
    reference = load_network(SNAPSHOT)
    print("\nRelative errors of float32 against PyTorch in float64 (float32 itself rounds at 6e-8):\n")
    agree = compare(reference, apply)

    samples = draw(reference, apply)
    decoded = [StandardRGBEncoder().decode(torch.from_numpy(sample)).numpy() for sample in samples]
    difference = np.abs(samples[0] - samples[1]).max()
    from PIL import Image

    Image.fromarray(contact_sheet(np.concatenate(decoded), columns=10)).save(picture)
    print(f"\nOne digit per class after 32 Heun steps: the largest difference is {difference:.1e} (pixels are -1 to 1)")
    print(f"{picture}: PyTorch above, JAX below")
    print("PyTorch and JAX agree." if agree else f"PyTorch and JAX DISAGREE: an error is above {BOUND:g}.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
