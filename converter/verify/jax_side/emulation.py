"""Products as accelerators compute them, emulated on the CPU: how far from the truth a TPU or a TF32 GPU will be.

A TPU multiplies bfloat16. JAX's precision says of how many products of parts a product of float32 consists there: one
(default), three (high) or six (highest). A GPU multiplies float32, or (default, high) TF32, whose inputs have 10 bits
behind the point. Half precision is multiplied exactly, summed in float32, and rounded once, on both.

The rule is put where XLA's operations are made, so that everything that JAX compiles for the CPU follows it: gradients
and what a compiler does not see of the network as well. What remains is the order of sums, which is the CPU's here.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.interpreters import mlir  # there is no other way to what an operation becomes
from jax.extend.core import Primitive

Emulated = Literal["tpu", "gpu"]

# Of parts of both operands, largest first: which products are summed.
PRODUCTS = {
    lax.Precision.DEFAULT: [(0, 0)],
    lax.Precision.HIGH: [(0, 0), (0, 1), (1, 0)],
    lax.Precision.HIGHEST: [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)],
}
BFLOAT16, TF32 = (8, 7), (8, 10)  # bits of the exponent, and behind the point
MULTIPLIED = (lax.dot_general_p, lax.conv_general_dilated_p)

_now: Emulated | None = None


def now() -> Emulated | None:
    """What is emulated."""
    return _now


def platform() -> str:
    """cpu, gpu or tpu: what JAX computes like."""
    return _now or jax.default_backend()


@contextlib.contextmanager
def emulated(device: Emulated | None) -> Iterator[None]:
    """While open, what JAX compiles for the CPU multiplies as `device` does; None changes nothing.

    What is compiled is forgotten at both ends. Not for several threads.
    """
    global _now
    if device is None:
        yield
        return
    rules = mlir._platform_specific_lowerings["cpu"]
    kept = {primitive: rules[primitive] for primitive in MULTIPLIED}
    jax.clear_caches()
    for primitive, rule in kept.items():
        plain = _plain(primitive, rule.rule)
        mlir.register_lowering(primitive, _rule(partial(_multiply, plain, device)), platform="cpu")
    _now = device
    try:
        yield
    finally:
        _now = None
        rules.update(kept)
        jax.clear_caches()


def _plain(primitive: Any, rule: Any) -> Primitive:
    """The same operation under another name, which stays what it is."""
    plain = Primitive(f"plain_{primitive.name}")
    plain.def_abstract_eval(lambda *shapes, **parameters: primitive.abstract_eval(*shapes, **parameters)[0])
    mlir.register_lowering(plain, rule)
    return plain


def _rule(function: Any) -> Any:
    """A function of arrays as the rule of what an operation becomes."""
    return lambda context, *operands, **parameters: mlir.lower_fun(
        partial(function, **parameters), multiple_results=False
    )(context, *operands)


def _multiply(plain: Primitive, device: Emulated, x: jax.Array, y: jax.Array, **parameters: Any) -> jax.Array:
    """What `device` makes of a product, or a convolution, of x and y."""
    wanted = parameters["preferred_element_type"] or jnp.result_type(x, y)
    if jnp.float64 in (x.dtype, y.dtype) or not all(jnp.issubdtype(v.dtype, jnp.floating) for v in (x, y)):
        return plain.bind(x, y, **parameters)
    precision = _precision(parameters["precision"])
    multiply = partial(plain.bind, **{**parameters, "precision": None, "preferred_element_type": jnp.dtype("float32")})
    if jnp.float32 not in (x.dtype, y.dtype):
        return multiply(x.astype(jnp.float32), y.astype(jnp.float32)).astype(wanted)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    if device == "gpu":
        if precision != lax.Precision.HIGHEST:
            x, y = lax.reduce_precision(x, *TF32), lax.reduce_precision(y, *TF32)
        return multiply(x, y).astype(wanted)
    pairs = PRODUCTS[precision]
    count = 1 + max(max(pair) for pair in pairs)
    xs, ys = _parts(x, count), _parts(y, count)
    return sum(multiply(xs[i], ys[j]) for i, j in reversed(pairs)).astype(wanted)


def _precision(given: Any) -> lax.Precision:
    """Of one operation, as JAX keeps it: None, or one for each operand."""
    return lax.Precision.DEFAULT if given is None else given[0] if isinstance(given, tuple) else given


def _parts(x: jax.Array, count: int) -> list[jax.Array]:
    """`count` numbers of bfloat16, in float32, that add up to x as far as they can."""
    parts = []
    for _ in range(count):
        parts.append(lax.reduce_precision(x, *BFLOAT16))
        x = x - parts[-1]
    return parts
