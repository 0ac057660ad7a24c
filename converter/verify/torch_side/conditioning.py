"""How far rounding carries: the condition number of every tap, measured on the truth itself.

The float64 network runs once more, and every operation's result is disturbed by a relative error of random signs, as
rounding would (Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002, 1997). What comes out at a tap, divided by what
went in, is about the square root of the number of operations behind it, except where the network amplifies rounding:
the norm of a few channels, some of which are near 0, may have a thousand. Coarser precisions are measured with coarser
disturbances: a sign is either kept by them or not.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..taps import INPUT, Tap

NOISE = 1e-7  # of float32: small enough for the response to be linear, and far above what float64 itself rounds
ILL, DRAWS = 100.0, 4
SIGNS = 2**20 - 3  # random signs in store, used from a random place on; odd, so that rows of a tensor differ


class Rounding:
    """Disturbs tensors, and on the way back their gradients, by a relative error of `noise` with random signs."""

    def __init__(self, noise: float = NOISE, seed: int = 0):
        self.noise = noise
        self._random = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (SIGNS,), generator=self._random).double() * 2 - 1
        self._signs = signs.repeat(2)  # so that there are SIGNS from any place on

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _Disturb.apply(x, self)

    def disturb(self, x: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
        """x with an error relative to its root mean square, or to `size`, element by element."""
        start = int(torch.randint(0, SIGNS, (), generator=self._random))
        signs = self._signs[start : start + SIGNS]
        if x.numel() > SIGNS:
            signs = signs.repeat(x.numel() // SIGNS + 1)
        signs = signs[: x.numel()].reshape(x.shape)
        return x + signs * (self.noise * (_size(x) if size is None else size))

    def visit(self, tap: Tap, value: torch.Tensor) -> torch.Tensor:
        """A visitor of taps that disturbs every operation, but for the input, which is rounded once only."""
        return value if tap.scope == INPUT else self(value)

    @contextlib.contextmanager
    def norms(self, namespace: dict[str, Any]) -> Iterator[None]:
        """While open, the norms of a network are disturbed inside. namespace: globals of the file that defines it.

        The gradient of x / |x| is a difference of two terms, which are rounded before they cancel: nearly all of it
        does for few elements. Weights, whose norm is no tap, are disturbed in the forward pass as well.
        """
        normalize = namespace["normalize"]

        def disturbed(x, dim=None, *args, **kwargs):
            terms: list[torch.Tensor] = []  # one of the two, element by element
            y = normalize(_Disturb.apply(x, self, terms), dim, *args, **kwargs)
            if y.requires_grad:
                over = list(range(1, x.ndim)) if dim is None else dim
                size, unit = (torch.linalg.vector_norm(z.detach(), dim=over, keepdim=True) for z in (x, y))
                slope = (unit / size).nan_to_num()  # what x is multiplied by
                y.register_hook(lambda gradient: terms.append(gradient.abs() * slope))
            return self(y) if dim is None else y

        namespace["normalize"] = disturbed
        try:
            yield
        finally:
            namespace["normalize"] = normalize


class _Disturb(torch.autograd.Function):
    """Disturbs forward and back; with `terms`, only back, and by what the last of them says."""

    @staticmethod
    def forward(ctx, x, rounding, terms=None):
        ctx.rounding, ctx.terms = rounding, terms
        return rounding.disturb(x) if terms is None else x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        size = None if ctx.terms is None else ctx.terms.pop()
        return ctx.rounding.disturb(gradient, size), None, None


def _size(x: torch.Tensor) -> torch.Tensor:
    return x.detach().square().mean().sqrt()


def conditions(
    run: Callable, exact: Callable, continued: Callable = lambda _tap, value: value, noise: float = NOISE
) -> dict[str, float]:
    """The condition number of every tap that is seen while the network runs.

    run(visit): runs the network. exact(tap): the truth. continued(tap, value): what the network continues with.
    noise: of every operation.
    """

    def measure(rounding: Rounding) -> dict[str, float]:
        found = {}

        def visit(tap, value):
            value = rounding.visit(tap, value)
            found[str(tap)] = condition(value.numpy(), exact(tap), noise)
            return continued(tap, value)

        run(visit)
        return found

    return largest(measure, noise)


def largest(measure: Callable[[Rounding], dict[str, float]], noise: float = NOISE) -> dict[str, float]:
    """The largest condition numbers of a few measurements; of one, where that shows nothing ill-conditioned.

    A large one is made by the few values that happen to lie near 0, and one set of signs may be kind to them. A coarse
    disturbance shows them only where it turns a sign.
    """
    found = measure(Rounding(noise))
    for seed in range(1, DRAWS):
        if noise <= NOISE and max(found.values()) < ILL:
            break
        again = measure(Rounding(noise, seed))
        found = {name: max(value, again[name]) for name, value in found.items()}
    return found


def condition(disturbed: np.ndarray, exact: np.ndarray, noise: float, norm: float | None = None) -> float:
    """What came out, divided by what went in. norm: stands in for |exact|, as in `difference`."""
    apart = float(np.linalg.norm(np.subtract(disturbed, exact, dtype=np.float64)))
    size = float(np.linalg.norm(exact)) if norm is None else norm
    return apart / (size or 1.0) / noise
