import atexit
import contextlib
import ctypes
import gc
import os
import shutil
import tempfile

from tests.support.compiling import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", flags(devices=2))  # before jax is imported
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one test has compiled, in any process, no other does again
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="edm2-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from tests.support.shapes import MODULES

install_import_hook(MODULES, "tests.support.shapes.checked")  # before anybody imports them

import jax_edm2
import tests.support.vision  # noqa: F401  before anybody imports torchvision
from jax_edm2 import remote
from jax_edm2.converter.convert import convert
from jax_edm2.converter.downloads import download
from jax_edm2.converter.downloads.cache import Cache
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support.hub import Hub, pointed_at
from tests.support.networks import TINY_DIGITS, network
from tests.support.s3 import S3

jax.config.update("jax_numpy_dtype_promotion", "strict")
settings.register_profile(
    "seeded", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("seeded")


@pytest.fixture(scope="module", autouse=True)
def compiled_for_one_module():
    """Compiled networks are kept in memory until a module's end, and on disk until the end of all tests."""
    yield
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other systems' C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)  # or glibc keeps what was freed: the sum of all modules' most


@pytest.fixture(scope="session")
def digits_pkl():
    return ROOT / "golden" / "digits.pkl"


@pytest.fixture(scope="session")
def digits_guide_pkl(digits_pkl):
    return digits_pkl.with_name("digits-guide.pkl")


@pytest.fixture(scope="session")
def digits_checkpoint(digits_pkl, tmp_path_factory):
    return converted(digits_pkl, tmp_path_factory)


@pytest.fixture(scope="session")
def digits_guide_checkpoint(digits_guide_pkl, tmp_path_factory):
    return converted(digits_guide_pkl, tmp_path_factory)


def converted(snapshot_path, tmp_path_factory):
    path = tmp_path_factory.mktemp(snapshot_path.stem) / f"{snapshot_path.stem}.safetensors"
    with read_snapshot(snapshot_path) as snapshot:
        convert(snapshot, path)
    return path


@pytest.fixture(scope="session")
def tiny_pkl(tmp_path_factory):
    """A random network of the digits' shape, which is compiled in a tenth of their time."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.pkl"
    write_snapshot(path, network(TINY_DIGITS, 1))
    return path


@pytest.fixture(scope="session")
def tiny_guide_pkl(tiny_pkl):
    """Another one, to guide it."""
    path = tiny_pkl.with_name("tiny-guide.pkl")
    write_snapshot(path, network(TINY_DIGITS, 2))
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_pkl, tmp_path_factory):
    return converted(tiny_pkl, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_guide_checkpoint(tiny_guide_pkl, tmp_path_factory):
    return converted(tiny_guide_pkl, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_network(tiny_checkpoint):
    """The tiny network and its variables."""
    return jax_edm2.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def digits(digits_checkpoint):
    """The digits network and its variables."""
    return jax_edm2.load(digits_checkpoint)


@pytest.fixture(scope="session")
def digits_guide(digits_guide_checkpoint):
    """An earlier snapshot of the digits network, to guide it, and its variables."""
    return jax_edm2.load(digits_guide_checkpoint)


# Downloads


@pytest.fixture
def impatient(monkeypatch):
    """Attempts follow each other at once, and no proxy comes between."""
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def data(digits_pkl):
    """What servers serve: the digits snapshot."""
    return digits_pkl.read_bytes()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "downloads")


# Stores


@pytest.fixture(scope="session")
def s3_server():
    with S3() as server:
        yield server


@pytest.fixture
def s3(s3_server, impatient, monkeypatch):
    """An S3 server with all that it has been given, which behaves, and whose requests are counted anew."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote.files, "WAIT", 0.001)
    s3_server.answer = lambda environ, number: None
    s3_server.refuse = lambda environ, number: False
    s3_server.requests.clear()
    s3_server.gets = 0
    return s3_server


@pytest.fixture
def hub(impatient, monkeypatch):
    """A hub of its own, to which nobody is logged in."""
    monkeypatch.setattr(remote.files, "WAIT", 0.001)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as server, pointed_at(server, monkeypatch):
        yield server
