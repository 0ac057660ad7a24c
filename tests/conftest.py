import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest
from hypothesis import HealthCheck, settings

import jax_edm2
from converter.convert import convert
from converter.snapshot import read_snapshot

jax.config.update("jax_numpy_dtype_promotion", "strict")
settings.register_profile(
    "seeded", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("seeded")


@pytest.fixture(scope="session")
def digits_pkl():
    return Path(__file__).parent.parent / "golden" / "digits.pkl"


@pytest.fixture(scope="session")
def digits_checkpoint(digits_pkl, tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    with read_snapshot(digits_pkl) as snapshot:
        convert(snapshot, path)
    return path


@pytest.fixture(scope="session")
def digits(digits_checkpoint):
    """The digits network and its variables."""
    return jax_edm2.load(digits_checkpoint)
