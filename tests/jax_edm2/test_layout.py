"""Folded networks expect the weights that folding makes."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jax_edm2
from jax_edm2.layout import Layout
from tests.jax_edm2.test_ops import WIDE


@pytest.mark.parametrize(("platform", "found"), [("cpu", {"OI", "HWIO", "winograd"}), ("gpu", {"OI", "HWIO"})])
def test_both_sides_have_the_same_shapes(platform, found):
    net = jax_edm2.Precond(jax_edm2.EDM2Config(**WIDE))
    shapes = jax_edm2.expected_tree(net.config)
    stored = unflatten_dict({path: jnp.zeros(shape, jnp.float16) for path, shape in shapes.items()}, sep="/")
    folded = net.clone(folded="winograd" if platform == "cpu" else "direct")
    made = jax.eval_shape(lambda variables: jax_edm2.fold(net, variables, platform)[1], stored)
    x, sigma, keys = (
        jnp.zeros((1, 3, 10, 10)),
        jnp.ones(1),
        {"params": jax.random.key(0), "constants": jax.random.key(0)},
    )
    wanted = jax.eval_shape(folded.init, keys, x, sigma)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, wanted)
    weights = [path for path in shapes if path.endswith("mpconv_weight")]
    layouts = {path: Layout.of(shapes[path], folded.folded) for path in weights}
    assert {layout.kind for layout in layouts.values()} == found
    flat = flatten_dict(made, sep="/")
    assert {path: flat[path].shape for path in weights} == {path: layouts[path].shape for path in weights}


def test_weights_that_are_not_folded_keep_their_layout():
    assert Layout.of((4, 3), "") == Layout.of((4, 3), "winograd") == Layout("OI", (4, 3))
    assert Layout.of((64, 64, 3, 3), "") == Layout("OIHW", (64, 64, 3, 3))
    w = jnp.arange(12.0).reshape(4, 3, 1, 1)
    assert (Layout.of(w.shape, "direct").arrange(w, jnp.bfloat16) == w.astype(jnp.bfloat16).transpose(2, 3, 1, 0)).all()
    assert Layout.of(w.shape, "").arrange(w, jnp.bfloat16) is w
