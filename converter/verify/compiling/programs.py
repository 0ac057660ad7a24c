"""The functions that are compiled, and the shapes that they are compiled for. No weights are needed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_edm2.config import expected_tree
from jax_edm2.folding import fold
from jax_edm2.network import Precond
from jax_edm2.sampling import sample
from jax_edm2.settings import Settings
from jax_edm2.training import Recipe, begin, fully_sharded, make_optimizer, replicated, train_step
from jax_edm2.vae import VAEConfig, VAEDecoder

from ..jax_side.precision import jax_dtype
from .job import DECODER, DENOISER, SAMPLER, TRAINING, Job


class Program(NamedTuple):
    """A function, and the shapes of its arguments; donated: arguments whose memory it may use for what it gives."""

    function: Callable
    arguments: tuple
    donated: tuple[int, ...] = ()


def programs(job: Job, platform: str, mesh: Mesh) -> dict[str, Callable[[], Program]]:
    """By name, what makes each. Images are split over the mesh, weights are on every chip, but for --fsdp."""
    config, dtype = job.config, jax_dtype(job.precision)
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def shape(dimensions: tuple[int, ...], kind: Any = jnp.float32, where: NamedSharding = split):
        return jax.ShapeDtypeStruct(dimensions, kind, sharding=where)

    def placed(tree: Any, kind: Any = None):
        return jax.tree_util.tree_map(lambda leaf: shape(leaf.shape, kind or leaf.dtype, whole), tree)

    images = shape((job.batch, config.img_channels, config.img_resolution, config.img_resolution))
    sigma = shape((job.batch,))
    labels = shape((job.batch, config.label_dim)) if config.label_dim else None
    stored = unflatten_dict(
        {path: shape(dims, jnp.float32, whole) for path, dims in expected_tree(config).items()}, sep="/"
    )
    net = Precond(config, dtype)

    def folded():
        found = []

        def variables(tree):
            found.append(fold(net, tree, platform))
            return found[0][1]

        return placed(jax.eval_shape(variables, stored)), found[0][0]

    def denoiser() -> Program:
        variables, folded_net = folded()
        return Program(folded_net.apply, (variables, images, sigma, labels))

    def sampler() -> Program:
        variables, folded_net = folded()
        settings = Settings(num_steps=job.steps)
        return Program(
            lambda variables, noise, labels: sample(folded_net, variables, noise, labels, settings=settings),
            (variables, images, labels),
            (1,),
        )

    def decoder() -> Program:
        vae = VAEConfig(latent_channels=config.img_channels)
        tensors = {name: shape(dims, dtype, whole) for name, dims in vae.decoder_tensors.items()}
        latents = shape((job.batch, config.img_channels, config.img_resolution, config.img_resolution), dtype)
        return Program(VAEDecoder(vae), (tensors, latents))

    def training() -> Program:
        recipe = Recipe(batch_size=job.batch)
        optimizer, net = make_optimizer(recipe), Precond(config, dtype, remat=job.remat)
        state = jax.eval_shape(lambda variables: begin(variables, optimizer, recipe), stored)
        where = (fully_sharded if job.fsdp else replicated)(state, mesh)
        state = jax.tree_util.tree_map(lambda leaf, where: shape(leaf.shape, leaf.dtype, where), state, where)
        key = jax.eval_shape(lambda: jax.random.key(0))

        def step(state, images, labels, key):
            state, shown = train_step(net, optimizer, recipe, state, images, labels, key, parts=job.parts)
            return jax.lax.with_sharding_constraint(state, where), shown

        return Program(step, (state, images, labels, key), (0,))

    return {DENOISER: denoiser, SAMPLER: sampler, DECODER: decoder, TRAINING: training}
