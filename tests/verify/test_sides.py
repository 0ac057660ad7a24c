"""PyTorch's side and JAX's side of a verification meet in a truth file, and nowhere else."""

import subprocess

import pytest

from jax_edm2.converter import processes

SIDES = {
    "torch": ("torch_side.oracle", ("jax", "flax", "jax_edm2.converter.verify.jax_side")),
    "jax": ("jax_side.judgement", ("torch", "jax_edm2.torch_ref", "jax_edm2.converter.verify.torch_side.oracle")),
    "neither": ("run", ("jax", "flax", "torch", "jax_edm2.torch_ref")),
}


@pytest.mark.parametrize("side", SIDES)
def test_what_a_side_does_not_import(side):
    module, others = SIDES[side]
    code = (
        f"import sys, jax_edm2.converter.verify.{module}; print([name for name in {others!r} if name in sys.modules])"
    )
    done = subprocess.run(processes.python(code), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
