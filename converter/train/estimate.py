"""What a training will take, before it is begun: memory of each device by part, and work per step."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from jax_edm2.config import expected_tree
from jax_edm2.training import begin, data_mesh, fully_sharded, make_optimizer, replicated

from ..flops import multiply_accumulates
from .plan import Plan


@dataclass(frozen=True)
class Needs:
    """bytes: of one device, by part; what activations take beside that, a compiled program says (--compile-for).

    flop: of a step, on all devices.
    """

    devices: int
    parts: int
    parameters: int
    bytes: dict[str, int]
    flop: int


def needs(plan: Plan) -> Needs:
    """On the devices that JAX has. Raises: UsageError for a batch that does not divide."""
    mesh, optimizer = data_mesh(), make_optimizer(plan.recipe)
    variables = unflatten_dict(
        {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in expected_tree(plan.config).items()}, sep="/"
    )
    state = jax.eval_shape(lambda variables: begin(variables, optimizer, plan.recipe), variables)
    place = fully_sharded if plan.request.fsdp else replicated

    def size(tree: Any) -> int:
        leaves, shardings = (jax.tree_util.tree_leaves(each) for each in (tree, place(tree, mesh)))
        shards = (where.shard_shape(leaf.shape) for leaf, where in zip(leaves, shardings, strict=True))
        return 4 * sum(map(math.prod, shards))

    batch, parts = plan.recipe.batch_size, plan.parts(mesh.size)
    image = plan.config.img_channels * plan.config.img_resolution**2
    found = {
        "parameters": size(state.variables),
        "Adam's moments": size(state.optimizer),
        "averages": size(state.averages),
        "gradient": size(state.variables["params"]),
        "images": 4 * image * batch // mesh.size,
    }
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree_util.tree_leaves(variables["params"]))
    return Needs(mesh.size, parts, parameters, found, 6 * multiply_accumulates(plan.config) * batch)
