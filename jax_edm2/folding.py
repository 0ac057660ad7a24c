"""Variables for inference: weights normalised and scaled once, instead of in every forward pass."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_edm2.layout import Folded, Layout
from jax_edm2.network import Precond
from jax_edm2.ops import effective_weight, whole, wide


def fold(net: Precond, variables: Any, platform: str | None = None) -> tuple[Precond, Any]:
    """A network that computes the same with the variables that it comes with: D = net.apply(variables, x, sigma, ...).

    Every weight w becomes normalize(w) gain / sqrt(fan_in) (Eq. 47 of arXiv 2312.02696), in the dtype in which it is
    used; those of convolutions become what no evaluation has to transpose: [out, height, width, in] on a GPU, else
    [height, width, in, out], or [16, in, out] where Winograd's algorithm is faster: in float32 on a CPU. Folded
    variables are for inference: they can be neither trained nor saved, and folding them again changes nothing.

    variables: as `load` gives them, in any dtype; or folded already. platform: cpu, gpu or tpu, where the network will
    run; by default where the variables are.
    """
    if net.folded:
        return net, variables
    net = net.clone(folded=folding_for(net, platform or platform_of(variables)))
    # A program for each shape is soon compiled. What is sharded takes one for all: its parts come together in the same
    # order on all devices, which programs that are started one after the other do not promise on a CPU.
    parts = any(not leaf.is_fully_replicated for leaf in _arrays(variables))
    return net, (_fold_at_once if parts else _fold)(net, variables)


def platform_of(variables: Any) -> str:
    """cpu, gpu or tpu: where arrays are; while something is traced, or for numpy's arrays, JAX's default."""
    for leaf in _arrays(variables):
        return next(iter(leaf.devices())).platform
    return jax.default_backend()


def _arrays(variables: Any) -> list[jax.Array]:
    """JAX's arrays in a tree, without what is traced."""
    leaves = jax.tree_util.tree_leaves(variables)
    return [leaf for leaf in leaves if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)]


def folding_for(net: Precond, platform: str) -> Folded:
    """The fastest on a platform."""
    if platform in ("gpu", "cuda", "rocm"):
        return "cudnn"
    return "winograd" if platform == "cpu" and net.dtype == jnp.float32 else "direct"


def _fold(net: Precond, variables: Any) -> Any:
    """The variables of `net`, a folded network, from those as stored."""
    leaves = flatten_dict(variables)
    for path, weight in leaves.items():
        if path[-1] == "mpconv_weight":
            leaves[path] = _fold_weight(jnp.asarray(weight), leaves.get(_gain(path)), net.folded, net.dtype)
    return unflatten_dict(leaves)


_fold_at_once = jax.jit(_fold, static_argnums=0)


@partial(jax.jit, static_argnums=(2, 3))  # compiled once for every shape
def _fold_weight(weight: jax.Array, gain: jax.Array | None, folded: Folded, dtype: Any) -> jax.Array:
    w = effective_weight(whole(weight).astype(wide(dtype)), gain)
    return Layout.of(weight.shape, folded).arrange(w, dtype)


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
