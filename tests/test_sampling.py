"""Samplers, guidance and churn give what torch_ref's own loops give, option by option."""

import numpy as np
import pytest

from golden.digits import load_network
from jax_edm2.generation import Draw

SEEDS = 32  # python -m tests.sampling_survey takes 256
BOUND = 1e-4  # of pixels from -1 to 1; measured by the survey: see BENCHMARKS.md


@pytest.fixture(scope="session")
def torch_networks(digits_pkl, digits_guide_pkl):
    return load_network(digits_pkl), load_network(digits_guide_pkl)


@pytest.mark.parametrize("name", OPTIONS)
def test_samples_are_those_of_torch_ref(name, digits, digits_guide, torch_networks):
    settings = OPTIONS[name]
    draw = Draw.of(digits[0].config, range(SEEDS), rng="torch-cpu", churn_draws=settings.churn_draws)
    ours, theirs = with_jax(digits, digits_guide, draw, settings), with_torch(*torch_networks, draw, settings)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < BOUND
