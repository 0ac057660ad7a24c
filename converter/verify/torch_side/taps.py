"""Taps of a PyTorch network: hooks on its modules, and its file's functions wrapped while the hooks are on.

Works on `torch_ref.network` and on NVlabs' own source alike, because both name the same modules and the functions
normalize, resample, mp_silu, mp_sum and mp_cat.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from jax_edm2.config import EDM2Config

from ..taps import (
    EMBEDDING,
    INPUT,
    LOGVAR,
    OUT_CONV,
    OUTPUT,
    Tap,
    block_scope,
    conv_in_scope,
    last_operation,
)

FUNCTIONS = ("normalize", "resample", "mp_silu", "mp_sum", "mp_cat")
Visit = Callable[[Tap, torch.Tensor], torch.Tensor]


@contextlib.contextmanager
def tapped(net: torch.nn.Module, namespace: dict[str, Any], config: EDM2Config, visit: Visit) -> Iterator[None]:
    """While open, `visit` sees the value at every tap of a forward pass, and returns what the network continues with.

    namespace: the globals of the file that defines the network.
    """
    taps = _Taps(config, visit)
    originals = {name: namespace[name] for name in FUNCTIONS}
    handles = []
    try:
        for name, function in originals.items():
            namespace[name] = getattr(taps, name)(function)
        for name, module in net.named_modules():
            handles += taps.hooks(name, module)
        yield
    finally:
        namespace.update(originals)
        for handle in handles:
            handle.remove()


class _Taps:
    def __init__(self, config: EDM2Config, visit: Visit):
        architecture = config.architecture
        self._blocks = {block_scope(spec) for spec in architecture.encoder + architecture.decoder}
        self._concats = [block_scope(spec) for spec in architecture.decoder if spec.concat]
        self._conv_in = conv_in_scope(config)
        self._dropout = bool(config.dropout)
        self._last = last_operation(config)
        self._visit = visit
        self._begin()

    def _begin(self):
        """At the beginning of a forward pass."""
        self._scope = EMBEDDING  # a block while it runs
        self._silus = self._sums = 0  # in this scope so far
        self._joined = iter(self._concats)
        self._c_noise: torch.Tensor | None = None

    def _enter(self, scope):
        self._scope, self._silus, self._sums = scope, 0, 0

    def see(self, scope, operation, value):
        return self._visit(Tap(scope, operation), value)

    # The functions of the network's file

    def normalize(self, function):
        def wrapped(x, dim=None, *args, **kwargs):
            y = function(x, dim, *args, **kwargs)
            operation = {1: "pixel_norm", 2: "qkv_norm"}.get(dim) if isinstance(dim, int) else None
            return self.see(self._scope, operation, y) if operation else y  # else it is a weight

        return wrapped

    def resample(self, function):
        def wrapped(x, *args, **kwargs):
            y = function(x, *args, **kwargs)
            return y if y is x else self.see(self._scope, "resample", y)

        return wrapped

    def mp_silu(self, function):
        def wrapped(x):
            if self._scope == EMBEDDING:
                return self.see(EMBEDDING, "emb_silu", function(x))
            self._silus += 1
            if self._silus == 2:
                x = self.see(self._scope, "modulation", x)
            return self.see(self._scope, f"silu{self._silus - 1}", function(x))

        return wrapped

    def mp_sum(self, function):
        def wrapped(*args, **kwargs):
            y = function(*args, **kwargs)
            if self._scope == EMBEDDING:
                return self.see(EMBEDDING, "emb_sum", y)
            self._sums += 1
            return self.see(self._scope, ("res_sum", "attn_sum")[self._sums - 1], y)

        return wrapped

    def mp_cat(self, function):
        return lambda *args, **kwargs: self.see(next(self._joined), "concat", function(*args, **kwargs))

    # The modules

    def hooks(self, name: str, module: torch.nn.Module):
        scope, _, leaf = name.rpartition(".")
        if name == "":
            yield module.register_forward_pre_hook(lambda *_: self._begin())
            yield module.register_forward_hook(lambda _m, _i, out: self._denoised(out))
        elif name == "unet":
            yield module.register_forward_pre_hook(lambda _m, args: self._unet_input(*args))
        elif name in self._blocks:
            yield module.register_forward_pre_hook(lambda *_: self._enter(name))
            yield module.register_forward_hook(lambda _m, _i, out: self._leave(name, out))
        elif scope in self._blocks:
            before = {"attn_proj": "attention", "conv_res1": "dropout" if self._dropout else None}.get(leaf)
            if before:
                yield self._input(module, scope, before)
            yield self._output(module, scope, leaf)
        elif name in ("unet.emb_fourier", "unet.emb_noise", "unet.emb_label"):
            if leaf == "emb_label":
                yield self._input(module, EMBEDDING, "label_scale")
            yield self._output(module, EMBEDDING, leaf)
        elif name == self._conv_in:
            yield self._input(module, name, "ones")
            yield self._output(module, name, "conv")
        elif name == "unet.out_conv":
            yield self._output(module, OUT_CONV, "conv")
        elif name in ("logvar_fourier", "logvar_linear"):
            if name == "logvar_fourier":  # the same c_noise that the U-Net went on with
                yield module.register_forward_pre_hook(lambda *_: (self._c_noise,))
            yield self._output(module, LOGVAR, name)

    def _input(self, module, scope, operation):
        def hook(_module, args):
            return (self.see(scope, operation, args[0]), *args[1:])

        return module.register_forward_pre_hook(hook)

    def _output(self, module, scope, operation):
        return module.register_forward_hook(lambda _m, _i, out: self.see(scope, operation, out))

    def _unet_input(self, x, c_noise, *rest):
        self._c_noise = self.see(INPUT, "c_noise", c_noise)
        return (self.see(INPUT, "scaled_input", x), self._c_noise, *rest)

    def _leave(self, scope, out):
        out = self.see(scope, self._last, out)
        self._enter(EMBEDDING)
        return out

    def _denoised(self, out):
        if not isinstance(out, tuple):
            return self.see(OUTPUT, "denoised", out)
        return (self.see(OUTPUT, "denoised", out[0]), *out[1:])
