"""PyTorch, in its own process: the truth in float64, and PyTorch's own errors. Imports no jax."""
