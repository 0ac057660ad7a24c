"""Training EDM2 networks: what `edm2-train` does, as calls. The steps themselves are `jax_edm2.training`."""
