"""Proof that a JAX network computes what the PyTorch network of a snapshot computes.

`oracle` runs PyTorch, in a process of its own, and leaves a truth file; `candidate` runs JAX against that file;
`verdict` applies the rule; `report` says what was found.
"""
