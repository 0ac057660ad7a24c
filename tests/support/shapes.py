"""What checks the shapes in jax_edm2's signatures while tests run: see conftest."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an integer is a float, too
NAMES = "bridges.flaxdiff decoding network ops predictions samplers sampling training.loss vae.network"
MODULES = [f"jax_edm2.{name}" for name in NAMES.split()]
