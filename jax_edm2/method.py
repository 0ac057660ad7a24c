"""What a sampler is: a table of numbers for every evaluation of the denoiser, and how the state follows from a row."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

Denoise = Callable[[jax.Array, Any], jax.Array]


class Method(NamedTuple):
    """A sampler, one evaluation of the denoiser after the other; the state begins with x, the sample at last."""

    table: Any  # numbers of every evaluation: arrays whose first axis is that
    first: Callable[[jax.Array], Any]  # the state, of noise at the highest level
    advance: Callable[[Denoise, Any, Any, jax.Array | None], Any]  # the next, of the state and a row of the table

    @property
    def evaluations(self) -> int:
        return len(self.table[0])

    def run(self, denoise: Denoise, noise: jax.Array, sigmas: Sequence[float], churn_noise: jax.Array | None = None):
        """All of it, in one loop that is compiled once."""

        def body(state, row):
            return self.advance(denoise, state, row, churn_noise), None

        end, _ = lax.scan(body, self.first(noise * sigmas[0]), self.table)
        return end[0]
