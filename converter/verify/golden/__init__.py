"""Recorded truths that a machine is held to, with JAX alone."""
