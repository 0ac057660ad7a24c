"""Proof that a JAX network computes what the PyTorch network of a snapshot computes.

`torch_side` runs PyTorch, in its own process, and leaves a truth file; `jax_side` runs JAX against that file; neither
imports the other. `verdict` applies the rule, `run` puts one verification together, `report` says what was found.
`golden` holds a machine to truths that were recorded before, `throughput` says how fast both frameworks are.
"""
