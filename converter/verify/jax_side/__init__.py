"""JAX, measured against a truth file. Imports no torch."""
