"""Proof that a JAX network computes what the PyTorch network of a snapshot computes.

`torch_side` runs PyTorch, in its own process, and leaves a truth file; `jax_side` runs JAX against that file; neither
imports the other. `verdict` has the rule, `report` says what was found. `golden` holds a machine to truths that were
recorded before, `throughput` says how fast both frameworks are. What edm2-verify does is a call each:

    run.verify(request)                        a `request` FromSnapshot or FromTruth; the Outcome
    oracle_process.save_truth(request, path)   what PyTorch computes, for another machine
    golden.check.hold_to(paths)                the Outcomes of goldens
    assert_agrees(snapshot, denoise)           for tests: anybody's port, held to a snapshot or a truth file
    source.Source.of(snapshot)                 the source that a snapshot carries
"""

from .assertion import assert_agrees as assert_agrees
