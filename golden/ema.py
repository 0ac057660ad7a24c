"""Records EMA exponents, averages and post-hoc coefficients: golden/ema.json, worked out by other ways than jax_edm2's.

    python -m golden.ema            # print them, and write the file
    python -m golden.ema --check    # how far jax_edm2.ema is from the record

Exponents come from bisection of the definition of a profile's relative standard deviation, inner products from
numerical integration of the profiles (scipy), where jax_edm2 has closed forms; averages are weighted sums over the
whole of training, where jax_edm2 goes step by step. The cases are those of NVlabs'
snapshots: two averages, kept every so often, reconstructed at the lengths that the presets have.
"""

import argparse
import json
import sys

import numpy as np

from jax_edm2.converter.verify.golden.ema import BOUNDS, RECORD, VALUES, distance

STDS = (0.010, 0.025, 0.050, 0.085, 0.100, 0.130, 0.200, 0.250)
STORED = [(time, std) for time in (134.0, 512.0, 1073.0, 2147.0) for std in (0.050, 0.100)]  # Mimg
WANTED = [(2147.0, 0.025), (2147.0, 0.130), (2147.0, 0.190), (1073.0, 0.075), (134.0, 0.125)]


def exponent(std):
    """gamma of the profile t^gamma on [0, 1] whose standard deviation is std."""
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
        low, high = (gamma, high) if np.sqrt(square - mean**2) > std else (low, gamma)
    return gamma


def inner_product(a, b):
    from scipy.integrate import quad

    (time_a, gamma_a), (time_b, gamma_b) = sorted((time, exponent(std)) for time, std in (a, b))

    def product(u):  # t = time_a u, up to where the shorter profile ends
        return (gamma_a + 1) * u**gamma_a * (gamma_b + 1) / time_b * (u * time_a / time_b) ** gamma_b

    return quad(product, 0, 1, points=[0.8, 0.95, 0.99], epsabs=0, epsrel=1e-13, limit=500)[0]


def average(std):
    """The profile's weighted sum of VALUES: a step's weight is the profile's area over it."""
    edges = (np.arange(len(VALUES) + 1) / len(VALUES)) ** (exponent(std) + 1)
    return float(np.diff(edges) @ VALUES)


def record():
    gram = np.array([[inner_product(a, b) for b in STORED] for a in STORED])
    sides = np.array([[inner_product(a, b) for b in WANTED] for a in STORED])
    coefficients = np.linalg.solve(gram, sides)
    coefficients /= coefficients.sum(axis=0)
    return {
        "exponents": {str(std): exponent(std) for std in STDS},
        "averages": {str(std): average(std) for std in STDS},
        "stored": STORED,
        "wanted": WANTED,
        "coefficients": coefficients.tolist(),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.ema", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    found = json.loads(RECORD.read_text()) if args.check else record()
    if not args.check:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
    errors = distance(found)
    print(f"exponents differ by {errors[0]:.1e}, averages by {errors[1]:.1e}, coefficients by {errors[2]:.1e}")
    return 0 if all(error <= bound for error, bound in zip(errors, BOUNDS, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
