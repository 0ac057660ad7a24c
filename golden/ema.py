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
from pathlib import Path

import numpy as np

RECORD = Path(__file__).with_name("ema.json")
STDS = (0.010, 0.025, 0.050, 0.085, 0.100, 0.130, 0.200, 0.250)
STORED = [(time, std) for time in (134.0, 512.0, 1073.0, 2147.0) for std in (0.050, 0.100)]  # Mimg
WANTED = [(2147.0, 0.025), (2147.0, 0.130), (2147.0, 0.190), (1073.0, 0.075), (134.0, 0.125)]
VALUES = np.cos(np.arange(1.0, 101.0))  # of a parameter, after every step of training
BOUNDS = (9e-13, 4.2e-13, 1.4e-13)  # exponents (relative), averages, coefficients; measured: a third of each


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


def distance(found):
    """The largest errors of what jax_edm2 computes: exponents (relative), averages and coefficients."""
    from jax_edm2.ema import posthoc_coefficients, power_function_exponent, update_average

    exponents = [abs(power_function_exponent(float(std)) / gamma - 1) for std, gamma in found["exponents"].items()]
    averages = []
    for std, exact in found["averages"].items():
        mean = 0.0
        for i, value in enumerate(VALUES, 1):
            mean = update_average(mean, value, images_seen=128 * i, batch_size=128, std=float(std))
        averages.append(abs(float(mean) - exact))
    coefficients = posthoc_coefficients(found["stored"], found["wanted"]) - np.array(found["coefficients"])
    return max(exponents), max(averages), float(np.abs(coefficients).max())


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
