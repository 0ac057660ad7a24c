"""How far `jax_edm2.ema` is from golden/ema.json, which other ways of working it out recorded (`golden.ema`)."""

import numpy as np

from .networks import DATA

RECORD = DATA / "ema.json"
VALUES = np.cos(np.arange(1.0, 101.0))  # of a parameter, after every step of training
BOUNDS = (9e-13, 4.2e-13, 1.4e-13)  # exponents (relative), averages, coefficients; measured: a third of each


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
