"""Taps of the JAX network, reached through flax.linen.intercept_methods; blocks run compiled, what joins them does not.

Only one block's values exist at a time, its variables too where they are `Unread`, and a block's compiled code serves
every pass of a run. Inside the U-Net the channels are last; here everything is seen in PyTorch's order.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jax_edm2.config import EDM2Config
from jax_edm2.network import Block, MPConv, MPFourier, Precond

from ...names import torch_name
from ..taps import (
    EMBEDDING,
    INPUT,
    OUTPUT,
    Tap,
    before_clip,
    block_scope,
    conv_in_scope,
    last_operation,
    scopes,
    tap_of_parameter,
)
from .unread import raised

Visit = Callable[[Tap, Any], Any]


class TappedNetwork:
    """A network whose forward pass shows the value at every tap.

    config: the architecture that is expected, which names the taps. last: the tap that was reached last.
    """

    def __init__(self, net: Precond, variables: Any, config: EDM2Config):
        self._net, self._variables, self._config = net, variables, config
        self._scopes = scopes(config)
        self._inside = False  # a block, where the block's own taps are recorded
        self._visit: Visit = lambda _tap, value: value
        self._amplify: dict[str, float] = {}
        self.last: Tap | None = None
        self._run_block = jax.jit(self._trace_block, static_argnums=(0, 1))

    def __call__(self, x, sigma, labels, visit: Visit, amplify: dict[str, float] | None = None):
        """(D, logvar). `visit` is called at every tap and returns the value that the network continues with.

        Inside blocks it only looks; what a block clips is first multiplied by amplify[scope].
        """
        self._visit, self._amplify, self._inside, self.last = visit, amplify or {}, False, None
        with nn.intercept_methods(self._intercept):
            return self._net.apply(self._variables, x, sigma, labels, return_logvar=True)

    def _see(self, tap: Tap, value):
        self.last = tap
        return self._visit(tap, value)

    def _see_inside(self, tap: Tap, value):
        """A value within the U-Net."""
        return _channels_last(self._see(tap, _channels_first(value)))

    def _intercept(self, next_function, args, kwargs, context):
        module = context.module
        if self._inside:
            return next_function(*args, **kwargs)
        if context.method_name == "tap":
            name, value = args
            see = self._see if isinstance(module, Precond) else self._see_inside
            return see(self._tap(name), value)
        if context.method_name != "__call__":
            return next_function(*args, **kwargs)
        if isinstance(module, Block):
            return self._block(module, *args, **kwargs)
        if not isinstance(module, MPConv | MPFourier):
            return next_function(*args, **kwargs)
        alone, variables = module.unbind()
        self._inside = True
        value = alone.apply(raised(variables), *args, **kwargs)
        self._inside = False
        parameter = torch_name("/".join(["params", *module.path, "mpconv_weight"]))
        return self._see_inside(tap_of_parameter(parameter, self._config), value)

    def _tap(self, name: str) -> Tap:
        """The tap that the network's own name for it, outside of blocks, stands for."""
        if name.endswith(".concat"):
            return Tap(f"unet.dec.{name.removesuffix('.concat')}", "concat")
        for scope in (INPUT, EMBEDDING, conv_in_scope(self._config), OUTPUT):
            if name in self._scopes[scope]:
                return Tap(scope, name)
        return Tap(OUTPUT, name)

    def _block(self, module: Block, x, emb, train=False):
        scope, last = block_scope(module.spec), last_operation(self._config)
        block, variables = module.unbind()
        amplify = jnp.asarray(self._amplify.get(scope, 1.0), jnp.float32)
        self._inside, self.last = True, Tap(scope, self._scopes.get(scope, (last,))[0])
        y, seen = self._run_block(block, train, raised(variables), x, emb, amplify)
        self._inside = False
        for operation in self._scopes.get(scope, ()):  # compiled functions return dicts in alphabetical order
            if operation in seen:
                self._see(Tap(scope, operation), seen[operation])
        return self._see_inside(Tap(scope, last), y)

    def _trace_block(self, block: Block, train: bool, variables, x, emb, amplify):
        scope, seen = block_scope(block.spec), {}

        def intercept(next_function, args, kwargs, context):
            if context.method_name == "tap":
                name, value = args
            elif context.method_name == "__call__" and isinstance(context.module, MPConv):
                name, value = context.module.name, next_function(*args, **kwargs)
            else:
                return next_function(*args, **kwargs)
            seen[name] = _channels_first(value)
            self.last = Tap(scope, name)
            return value * amplify.astype(value.dtype) if name == before_clip(block.spec) else value

        with nn.intercept_methods(intercept):
            y = block.apply(variables, x, emb, train)
        return y, seen


def _channels_first(value):
    """[N, H, W, C] as [N, C, H, W]; queries, keys and values [N, H W, heads, C / heads, 3] as in PyTorch."""
    order = {4: (0, 3, 1, 2), 5: (0, 2, 3, 4, 1)}.get(getattr(value, "ndim", 0))
    return value.transpose(order) if order else value


def _channels_last(value):
    return value.transpose(0, 2, 3, 1) if getattr(value, "ndim", 0) == 4 else value
