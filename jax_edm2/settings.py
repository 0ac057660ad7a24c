"""How to sample, as plain data: settings, their defaults, and the noise levels that follow. Imports no jax.

Numbers of the schedule are worked out in float64 or float32, before anything is traced. numpy is imported when there
are any to be worked out: what needs the defaults alone does without.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SAMPLERS = ("heun", "euler", "dpmpp-2m", "dpmpp-2m-sde", "ancestral", "rk4")  # `jax_edm2.sampling` has their methods
STOCHASTIC = ("dpmpp-2m-sde", "ancestral")  # those that add noise at every step but the last


@dataclass(frozen=True)
class Churn:
    """Noise that is added again along the way (Algorithm 2 of arXiv 2206.00364); none for S_churn 0."""

    S_churn: float = 0.0  # 0 or more; noise levels are raised by the factor 1 + min(S_churn / steps, sqrt(2) - 1)
    S_min: float = 0.0  # lowest and highest noise level where it is added, both inclusive
    S_max: float = math.inf
    S_noise: float = 1.0  # standard deviation of that noise; with 1, x has the raised noise level

    def raised(self, sigmas: Sequence[float]) -> list[float]:
        """The noise level that every step of a schedule starts from: its own, or a higher one."""
        gamma = min(self.S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
        return [s + gamma * s if self._at(s) else s for s in sigmas[:-1]]

    def draws(self, sigmas: Sequence[float]) -> int:
        """How many steps of a schedule add noise."""
        return sum(map(self._at, sigmas[:-1]))

    def _at(self, sigma: float) -> bool:
        import numpy as np

        # In float32, as in NVlabs' code: a bound may be one of the levels.
        low, level, high = map(np.float32, (self.S_min, sigma, self.S_max))
        return self.S_churn > 0 and bool(low <= level <= high)


NO_CHURN = Churn()


@dataclass(frozen=True)
class Settings:
    """How to sample. The defaults are those of the published results, without guidance.

    Raises: ValueError for values that make no sense, or whose noise levels are beyond float32.
    """

    sampler: str = "heun"  # one of SAMPLERS
    num_steps: int = 32  # 1 or more
    sigma_min: float = 0.002  # lowest and highest noise level, standard deviations: 0 < sigma_min <= sigma_max
    sigma_max: float = 80.0
    rho: float = 7.0  # exponent of the schedule, > 0: the larger, the more steps are at low noise
    guidance: float = 1.0  # w of Eq. 3 of arXiv 2406.02507, finite; 1 is no guidance
    interval: tuple[float, float] = (0.0, math.inf)  # noise levels (lo, hi] where there is guidance: 0 <= lo < hi
    unconditional: bool = False  # the guide is asked without labels; the network is its own, where no other is given
    churn: Churn = NO_CHURN

    def __post_init__(self):
        lo, hi = self.interval
        object.__setattr__(self, "interval", (lo, hi))  # hashable, whatever it was
        for wrong, why in (
            (self.sampler not in SAMPLERS, f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}"),
            (self.num_steps < 1, f"num_steps must be at least 1, not {self.num_steps}"),
            (
                not 0 < self.sigma_min <= self.sigma_max < math.inf,
                f"noise levels must be 0 < sigma_min <= sigma_max, not {self.sigma_min:g} and {self.sigma_max:g}",
            ),
            (not 0 < self.rho < math.inf, f"rho must be positive, not {self.rho:g}"),
            (not math.isfinite(self.guidance), f"guidance must be finite, not {self.guidance:g}"),
            (not 0 <= lo < hi, f"the guidance interval must be 0 <= lo < hi, not {lo:g} and {hi:g}"),
            (not 0 <= self.churn.S_churn < math.inf, f"S_churn must be 0 or more, not {self.churn.S_churn:g}"),
            (not math.isfinite(self.churn.S_noise), f"S_noise must be finite, not {self.churn.S_noise:g}"),
            (
                self.churn.S_churn > 0 and self.sampler not in ("heun", "euler"),
                f"churn is for the samplers heun and euler, not {self.sampler}",
            ),
        ):
            if wrong:
                raise ValueError(why)
        import numpy as np

        try:
            with np.errstate(over="ignore"):
                levels = self.sigmas[:-1]
        except OverflowError:
            levels = [math.inf]
        if not all(0 < level < math.inf for level in levels):
            raise ValueError("the schedule's noise levels are beyond float32: choose others, or another rho")

    @property
    def sigmas(self) -> list[float]:
        """The noise levels, num_steps + 1 from sigma_max to 0, as NVlabs' code has them: in float32."""
        import numpy as np

        return noise_levels(self.num_steps, self.sigma_min, self.sigma_max, self.rho, np.float32)

    @property
    def churn_draws(self) -> int:
        """How many noises the trajectory takes beside the first."""
        return self.num_steps - 1 if self.sampler in STOCHASTIC else self.churn.draws(self.sigmas)


def noise_levels(
    num_steps: int = Settings.num_steps,
    sigma_min: float = Settings.sigma_min,
    sigma_max: float = Settings.sigma_max,
    rho: float = Settings.rho,
    dtype: "type[np.floating] | None" = None,
) -> list[float]:
    """The schedule sigma_0 > ... > sigma_{N-1} and a final 0, length num_steps + 1 (Eq. 5 of arXiv 2206.00364).

    num_steps: 1 or more. sigma_min, sigma_max: standard deviations, 0 < sigma_min <= sigma_max. rho: > 0. (`Settings`
    checks them.) dtype: that it is worked out in, float64 by default. NVlabs' generate_images.py uses float32, where
    sigma_0 is 79.999985.
    """
    import numpy as np

    dtype = np.float64 if dtype is None else dtype
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = np.arange(num_steps, dtype=dtype) / dtype(max(num_steps - 1, 1))
    root = dtype(hi) + ramp * dtype(lo - hi)
    return [*(root.astype(np.float64) ** rho).astype(dtype).tolist(), 0.0]
