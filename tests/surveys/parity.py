"""How right is JAX in float32? Errors of D and logvar over many random networks, beside PyTorch's own.

    python -m tests.surveys.parity --examples 250     # 1.5 s each on two cores

The same networks, inputs and truth as tests/jax_edm2/test_parity.py, which holds a few of them to the bounds.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.jax_edm2.test_parity import BOUND, RATIO, jax_outputs
from tests.support.networks import configs, evaluate, inputs, network, relative_error


def survey(examples, number):
    """Relative errors [examples, 2 (D, logvar), 2 (JAX, PyTorch)] in float32 against PyTorch in float64."""
    errors = []

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kwargs=configs(), weights=st.integers(0, 2**31), labelled=st.booleans())
    def one(kwargs, weights, labelled):
        net = network(kwargs, weights)
        arguments = inputs(kwargs, 5, weights, labelled)
        truth, theirs = evaluate(net, *arguments), evaluate(net, *arguments, torch.float32)
        ours = jax_outputs(net, kwargs, *arguments)
        triples = zip(ours, theirs, truth, strict=True)
        errors.append([[relative_error(x, exact) for x in (j, t)] for j, t, exact in triples])
        jax.clear_caches()

    one()
    return np.array(errors)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    errors = survey(args.examples, args.seed)
    print(f"{len(errors)} random networks, seed {args.seed}: relative error of float32 against PyTorch in float64")
    print(f"{'':8}{'JAX median':>12}{'largest':>10}{'PyTorch median':>16}{'largest':>10}{'JAX/PyTorch, largest':>22}")
    for i, name in enumerate(("D", "logvar")):
        ours, theirs = errors[:, i].T
        print(
            f"{name:8}{np.median(ours):12.1e}{ours.max():10.1e}{np.median(theirs):16.1e}{theirs.max():10.1e}"
            f"{(ours / theirs).max():22.2f}"
        )
    beyond = (errors[..., 0] > BOUND) | (errors[..., 0] > RATIO * errors[..., 1])
    print(f"beyond {BOUND:g} or {RATIO} times PyTorch's error: {beyond.any(axis=1).sum()}")


if __name__ == "__main__":
    main()
