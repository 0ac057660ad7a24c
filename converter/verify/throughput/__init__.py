"""How fast both frameworks are: the same network, batch and device, in one run."""
