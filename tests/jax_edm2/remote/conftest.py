import pytest


@pytest.fixture(scope="module")
def file(digits_checkpoint):
    return digits_checkpoint.read_bytes()
