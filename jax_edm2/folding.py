"""Variables for inference: weights normalised and scaled once, instead of in every forward pass."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_edm2.network import Precond
from jax_edm2.ops import normalize, wide


def fold(net: Precond, variables: Any) -> tuple[Precond, Any]:
    """A network that computes the same with the variables that it comes with: D = net.apply(variables, x, sigma, ...).

    Every weight w becomes normalize(w) gain / sqrt(fan_in) (Eq. 47 of arXiv 2312.02696), in the dtype in which it is
    used; those of convolutions become [height, width, in, out], so that no evaluation has to turn them round. Folded
    variables are for inference: they can be neither trained nor saved.
    """
    return net.clone(folded=True), _fold(net, variables)


@partial(jax.jit, static_argnums=0)
def _fold(net: Precond, variables: Any) -> Any:
    leaves = flatten_dict(variables)
    full = wide(net.dtype)
    for path, weight in leaves.items():
        if path[-1] != "mpconv_weight":
            continue
        gain = leaves.get(_gain(path), None)
        scale = 1 / math.sqrt(weight[0].size)
        weight = normalize(weight.astype(full)) * (scale if gain is None else gain.astype(full) * scale)
        if weight.ndim == 4:
            leaves[path] = weight.astype(net.dtype).transpose(2, 3, 1, 0)
        else:  # linear layers are the embedding's
            leaves[path] = weight.astype(full)
    return unflatten_dict(leaves)


def nvlabs_gains(variables: Any) -> Any:
    """Variables with gains as NVlabs' generate_images.py uses them: rounded to float16 again, after 1 / sqrt(fan_in).

    That is what PyTorch makes of a float16 scalar divided by a number, and changes F by some 2e-4. Gains that are not
    stored as float16 stay as they are; the others become float32.
    """
    leaves = flatten_dict(variables)
    for path, weight in list(leaves.items()):
        gain = leaves.get(_gain(path)) if path[-1] == "mpconv_weight" else None
        if gain is not None and gain.dtype == jnp.float16:
            root = np.float32(math.sqrt(weight[0].size))
            leaves[_gain(path)] = (gain.astype(jnp.float32) / root).astype(jnp.float16).astype(jnp.float32) * root
    return unflatten_dict(leaves)


def _gain(path: tuple[str, ...]) -> tuple[str, ...]:
    """Where the gain of a weight is, if it has one."""
    *scope, module, _ = path
    return (*scope, {"emb_linear": "emb_gain", "out_conv": "out_gain"}.get(module, ""))
