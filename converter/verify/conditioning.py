"""How far rounding carries: the condition number of every tap, measured on the truth itself.

The float64 network runs once more, and every operation's result is disturbed by a relative error of random signs, as
rounding would (Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002, 1997). What comes out at a tap, divided by what
went in, is about the square root of the number of operations behind it, except where the network amplifies rounding:
the norm of a few channels, some of which are near 0, may have a thousand.
"""

from collections.abc import Callable

import torch

from converter.verify.metrics import difference
from converter.verify.taps import INPUT, Tap

NOISE = 1e-7  # small enough for the response to be linear, and far above what float64 itself rounds


class Disturbed:
    """A visitor of taps that disturbs every operation and notes the condition number of each.

    exact(tap): the truth at a tap. go_on(tap, value): what the network goes on with, after the value was noted.
    """

    def __init__(self, exact: Callable, go_on: Callable = lambda _tap, value: value):
        self._exact, self._go_on = exact, go_on
        self._random = torch.Generator().manual_seed(0)
        self.found: dict[str, float] = {}

    def __call__(self, tap: Tap, value: torch.Tensor) -> torch.Tensor:
        if tap.scope != INPUT:  # which is rounded once only
            signs = torch.randint(0, 2, value.shape, generator=self._random).to(value.dtype) * 2 - 1
            value = value + signs * (NOISE * value.square().mean().sqrt())
        self.found[str(tap)] = difference(value.numpy(), self._exact(tap)).error / NOISE
        return self._go_on(tap, value)
