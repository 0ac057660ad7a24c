"""Products as accelerators compute them: each held to what numpy makes of the parts, and edm2-verify under them."""

import contextlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.verify.jax_side.emulation import emulated, platform
from jax_edm2.converter.verify.verdict import TOLERANCES, tolerance_on
from tests.support.command_line import Tool

TOOL = Tool("edm2-verify", processes.module("jax_edm2.converter.cli.verify"))
DIGITS = str(ROOT / "golden" / "digits.pkl")

RANDOM = np.random.default_rng(0)
A, B = RANDOM.standard_normal((48, 256), np.float32), RANDOM.standard_normal((256, 48), np.float32)
EXACT = A.astype(np.float64) @ B.astype(np.float64)


def to_bfloat16(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def to_tf32(x):
    """Rounded to ten bits behind the point, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    bits += 0xFFF + ((bits >> 13) & 1)
    return (bits & 0xFFFFE000).astype(np.uint32).view(np.float32).astype(np.float64)


def apart(found, exact) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def product(device, precision, a=A, b=B):
    with emulated(device), jax.default_matmul_precision(precision):
        return np.asarray(jax.jit(jnp.matmul)(a, b))


@pytest.mark.parametrize(
    ("device", "precision", "lowest", "highest"),
    [  # measured: 2.4e-3, 4.4e-6, 1.6e-7, 2.9e-4, 2.9e-4, 2.9e-4, 4.1e-7
        ("tpu", "default", 1e-3, 4e-3),
        ("tpu", "high", 1e-6, 1e-5),
        ("tpu", "highest", 0, 6e-7),
        ("gpu", "default", 1e-4, 6e-4),
        ("gpu", "high", 1e-4, 6e-4),
        ("gpu", "tensorfloat32", 1e-4, 6e-4),
        ("gpu", "highest", 0, 6e-7),
    ],
)
def test_how_far_products_are_from_the_truth(device, precision, lowest, highest):
    assert lowest <= apart(product(device, precision), EXACT) <= highest


def test_products_are_of_rounded_inputs():
    """And their sums are float32's: measured 1.6e-7."""
    assert apart(product("tpu", "default"), to_bfloat16(A) @ to_bfloat16(B)) < 6e-7
    assert apart(product("gpu", "default"), to_tf32(A) @ to_tf32(B)) < 6e-7
    first = to_bfloat16(A), to_bfloat16(B)
    second = (to_bfloat16(x - y.astype(np.float32)) for x, y in zip((A, B), first, strict=True))
    (a, b), (c, d) = first, second
    assert apart(product("tpu", "high"), a @ b + c @ b + a @ d) < 6e-7


@pytest.mark.parametrize("device", ["tpu", "gpu"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_rounded_once(device, dtype):
    a, b = A.astype(dtype), B.astype(dtype)
    found = product(device, "highest", a, b)
    assert found.dtype == dtype
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    assert (found != exact.astype(dtype)).mean() < 0.01  # measured: at most 0.1 %, where float32 sums in another order


def test_convolutions_and_what_is_differentiated():
    """The gradient of a sum of a convolution is one of two rounded operands too."""
    x, w = RANDOM.standard_normal((2, 8, 8, 16), np.float32), RANDOM.standard_normal((3, 3, 16, 8), np.float32)
    ct = RANDOM.standard_normal((2, 8, 8, 8), np.float32)

    def convolved(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradient(x, w, ct):
        return jax.vjp(convolved, x, w)[1](ct)

    rounded = [to_bfloat16(v).astype(np.float32) for v in (x, w, ct)]
    exact = jax.tree.map(np.asarray, (convolved(*rounded[:2]), *gradient(*rounded)))
    with emulated("tpu"):
        found = jax.tree.map(np.asarray, (jax.jit(convolved)(x, w), *jax.jit(gradient)(x, w, ct)))
        again = jax.tree.map(np.asarray, (convolved(x, w), *gradient(x, w, ct)))  # operation by operation
    for one, other, wanted in zip(found, again, exact, strict=True):
        assert apart(one, wanted.astype(np.float64)) < 6e-7  # measured: 1.5e-7
        assert apart(other, wanted.astype(np.float64)) < 6e-7


def test_it_ends():
    before = np.asarray(jax.jit(jnp.matmul)(A, B))
    assert platform() == "cpu"
    with emulated("tpu"):
        assert platform() == "tpu"
    with contextlib.suppress(KeyError), emulated("tpu"):
        raise KeyError
    assert platform() == "cpu"
    assert np.array_equal(jax.jit(jnp.matmul)(A, B), before)
    with jax.enable_x64(True), emulated("tpu"):
        wide = A.astype(np.float64), B.astype(np.float64)
        assert apart(jnp.matmul(*wide), EXACT) < 1e-14  # float64 stays as it is


def test_what_is_allowed():
    assert tolerance_on("tpu", "default") is TOLERANCES["default on TPU"]
    assert tolerance_on("tpu", "bfloat16") is TOLERANCES["bfloat16"]
    assert tolerance_on("gpu", "high") is tolerance_on("gpu", "default") is TOLERANCES["tf32"]
    assert tolerance_on("cpu", "high") is tolerance_on("cpu", "float32") is TOLERANCES["float32"]


def test_a_report_says_that_it_is_emulated():
    checks = ("--checks", "forward", "--batch", "2", "--json")
    done = TOOL.run(DIGITS, "--emulate", "tpu", "--precision", "default", *checks)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["environment"]["JAX"]["platform"] == "tpu, emulated"
    assert report["warnings"][0] == "the products of a TPU are emulated on the CPU: nothing ran on one"
    worst = max(m["error"] for m in report["measurements"]["forward"])
    assert 1e-3 < worst < 1e-2  # measured: 4e-3; float32 has 4e-7


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--device", "tpu"], "--emulate is of the CPU: leave --device tpu out"),
        (["--checks", "throughput"], "--emulate says nothing of speed: leave throughput out"),
        (["--sweep"], "--emulate says nothing of speed: leave throughput out"),
        (["--compile-for", "gpu:h100"], "with --compile-for it computes nothing"),
        (["--save-truth", "x.npz"], "with --save-truth it computes nothing"),
    ],
)
def test_wrong_usage(more, text):
    TOOL.fails(DIGITS, "--emulate", "tpu", *more, text=text)
