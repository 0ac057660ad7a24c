"""Training EDM2 networks in JAX: datasets, the loss, NVlabs' recipes, the optimiser, and one step of it all.

A loop of one's own takes `recipe_for`, `make_optimizer`, `begin` or `resume`, and `train_step`: see docs/library.md.
"""

from jax_edm2.training.dataset import DatasetError, ImageDataset, batches
from jax_edm2.training.encoding import encode
from jax_edm2.training.loss import denoising_loss, draw_noise_levels, project_to_sphere
from jax_edm2.training.meshes import data_mesh, fully_sharded, on_host, on_mesh, replicated
from jax_edm2.training.optimizer import follow, make_optimizer, on_the_sphere, zero_where_not_finite
from jax_edm2.training.recipe import Recipe, recipe_for
from jax_edm2.training.step import Draws, State, begin, draw, resume, to_training_state, train_step

__all__ = [
    "DatasetError",
    "Draws",
    "ImageDataset",
    "Recipe",
    "State",
    "batches",
    "begin",
    "data_mesh",
    "denoising_loss",
    "draw",
    "draw_noise_levels",
    "encode",
    "follow",
    "fully_sharded",
    "make_optimizer",
    "on_host",
    "on_mesh",
    "on_the_sphere",
    "project_to_sphere",
    "recipe_for",
    "replicated",
    "resume",
    "to_training_state",
    "train_step",
    "zero_where_not_finite",
]
