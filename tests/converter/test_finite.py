"""NaN and infinite values among bytes."""

import numpy as np
import pytest

from jax_edm2.converter.finite import count_not_finite
from jax_edm2.dtypes import DTYPES


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain Python", "numpy"])
def test_not_finite_values_are_found(dtype, plain, monkeypatch):
    """Among bit patterns of all kinds: every one of two bytes, and random ones with each exponent."""
    if plain:
        monkeypatch.setattr("jax_edm2.converter.finite._numpy_is_there", lambda: False)
    size = DTYPES[dtype].size
    bits = np.arange(2**16, dtype=f"u{size}") << (8 * size - 16)
    bits |= np.random.default_rng(0).integers(0, 2 ** (8 * size - 16), 2**16, dtype=bits.dtype)
    values = bits.view(DTYPES[dtype].numpy)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = ~np.isfinite(values.astype(np.float64))
    assert count_not_finite(values.tobytes(), dtype) == wanted.sum() > 0
    assert count_not_finite(values[~wanted].tobytes(), dtype) == 0
    for value in values[wanted][:: wanted.sum() // 32]:  # alone, wherever
        assert count_not_finite(np.array([*values[~wanted][:5], value]).tobytes(), dtype) == 1
