"""How good samples are: moments of features, gathered as they come, and the Fréchet distance between two of them."""

from jax_edm2.evaluation.frechet import Distance, frechet_distance
from jax_edm2.evaluation.moments import Moments, Statistics

__all__ = ["Distance", "Moments", "Statistics", "frechet_distance"]
