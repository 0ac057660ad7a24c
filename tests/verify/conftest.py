import pytest

from tests.support.laboratory import Laboratory


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory):
    return Laboratory(tmp_path_factory.mktemp("laboratory"))
