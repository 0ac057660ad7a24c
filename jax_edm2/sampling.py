"""Samplers: from noise to images, over a denoiser D(x; sigma) (arXiv 2206.00364), and guidance (arXiv 2406.02507).

    images = sample(net, variables, noise, labels, guide=(guide_net, guide_variables), settings=Settings(guidance=1.9))

A sampler is a function of (denoise, noise, sigmas), where denoise(x, sigma) -> D takes x [N, C, H, W] and one noise
level. It evaluates the denoiser in one place, within `lax.scan`: a trajectory of any length compiles the network once.
Numbers of the schedule are worked out in float64, before anything is traced.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_edm2.folding import fold
from jax_edm2.network import Precond
from jax_edm2.ops import wide

Denoise = Callable[[jax.Array, Any], jax.Array]
Network = tuple[Precond, Any]  # and its variables


def noise_levels(
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: type[np.floating] = np.float64,
) -> list[float]:
    """The schedule sigma_0 > ... > sigma_{N-1} and a final 0, length num_steps + 1 (Eq. 5 of arXiv 2206.00364).

    dtype: that it is worked out in. NVlabs' generate_images.py uses float32, where sigma_0 is 79.999985.
    """
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = np.arange(num_steps, dtype=dtype) / dtype(max(num_steps - 1, 1))
    root = dtype(hi) + ramp * dtype(lo - hi)
    return [*(root.astype(np.float64) ** rho).astype(dtype).tolist(), 0.0]


@dataclass(frozen=True)
class Churn:
    """Noise that is added again along the way (Algorithm 2 of arXiv 2206.00364); none for S_churn 0."""

    S_churn: float = 0.0
    S_min: float = 0.0  # lowest and highest noise level where it is added, both inclusive
    S_max: float = math.inf
    S_noise: float = 1.0

    def raised(self, sigmas: Sequence[float]) -> list[float]:
        """The noise level that every step of a schedule starts from: its own, or a higher one."""
        gamma = min(self.S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
        return [s + gamma * s if self._at(s) else s for s in sigmas[:-1]]

    def draws(self, sigmas: Sequence[float]) -> int:
        """How many steps of a schedule add noise."""
        return sum(map(self._at, sigmas[:-1]))

    def _at(self, sigma: float) -> bool:
        # In float32, as in NVlabs' code: a bound may be one of the levels.
        low, level, high = map(np.float32, (self.S_min, sigma, self.S_max))
        return self.S_churn > 0 and bool(low <= level <= high)


NO_CHURN = Churn()


class _Evaluation(NamedTuple):
    """One evaluation of the denoiser in Heun's and Euler's methods; or all of them, each field [evaluations]."""

    sigma: Any  # where
    step: Any  # how far the step goes that it belongs to: sigma of the end minus sigma of the start; negative
    corrects: Any  # 1 if it is the second of its step, which is taken again with the mean of both slopes, else 0
    noise: Any  # standard deviation of the noise to add before it
    draw: Any  # which of the noises


def _evaluations(sigmas: Sequence[float], churn: Churn, order: int, dtype) -> _Evaluation:
    rows = []
    draw = -1
    for low, start, end in zip(sigmas, churn.raised(sigmas), sigmas[1:], strict=False):
        added = math.sqrt(start**2 - low**2) * churn.S_noise
        draw += start > low
        rows.append((start, end - start, 0, added, max(draw, 0)))
        if order == 2 and end > 0:
            rows.append((end, end - start, 1, 0, max(draw, 0)))
    *columns, draws = map(np.asarray, zip(*rows, strict=True))
    sigma, step, corrects, noise = (column.astype(dtype) for column in columns)
    return _Evaluation(sigma, step, corrects, noise, draws.astype(np.int32))


class _State(NamedTuple):
    x: jax.Array  # where the denoiser is evaluated next
    start: jax.Array  # of the step that has been taken
    slope: jax.Array  # dx/dsigma there


def _advance(denoise: Denoise, state: _State, at: _Evaluation, noises: jax.Array | None) -> _State:
    x = state.x
    if noises is not None:
        x = x + at.noise * noises[at.draw]
    slope = (x - denoise(x, at.sigma)) / at.sigma
    start = jnp.where(at.corrects > 0, state.start, x)
    mean = jnp.where(at.corrects > 0, (state.slope + slope) / 2, slope)
    return _State(start + at.step * mean, start, slope)


def heun(
    denoise: Denoise,
    noise: jax.Array,
    sigmas: Sequence[float],
    churn: Churn = NO_CHURN,
    churn_noise: jax.Array | None = None,
) -> jax.Array:
    """The second-order sampler (Algorithms 1 and 2 of arXiv 2206.00364): 2 N - 1 evaluations for N steps.

    noise: unit noise [N, C, H, W]. churn_noise: unit noise [draws, N, C, H, W] for the `churn.draws(sigmas)` steps
    that add some.
    """
    return _integrate(denoise, noise, sigmas, churn, churn_noise, order=2)


def euler(
    denoise: Denoise,
    noise: jax.Array,
    sigmas: Sequence[float],
    churn: Churn = NO_CHURN,
    churn_noise: jax.Array | None = None,
) -> jax.Array:
    """As `heun`, without its corrections: N evaluations for N steps. Without churn this is DDIM."""
    return _integrate(denoise, noise, sigmas, churn, churn_noise, order=1)


def _integrate(denoise, noise, sigmas, churn, churn_noise, order):
    if (draws := churn.draws(sigmas)) != (0 if churn_noise is None else len(churn_noise)):
        raise ValueError(f"this schedule and churn take churn_noise [{draws}, N, C, H, W]")

    def body(state, at):
        return _advance(denoise, state, at, churn_noise), None

    x = _start(noise, sigmas)
    end, _ = lax.scan(body, _State(x, x, jnp.zeros_like(x)), _evaluations(sigmas, churn, order, x.dtype))
    return end.x


def heun_states(denoise: Denoise, noise: jax.Array, sigmas: Sequence[float]) -> Iterator[jax.Array]:
    """x at every noise level of the deterministic `heun`, from unit noise times sigmas[0] to the sample.

    A loop in Python: denoise may be anything, and is asked for one evaluation after the other.
    """
    x = _start(noise, sigmas)
    yield x
    state, table = _State(x, x, jnp.zeros_like(x)), _evaluations(sigmas, NO_CHURN, 2, x.dtype)
    for i in range(len(table.sigma)):
        state = _advance(denoise, state, _Evaluation(*(column[i] for column in table)), None)
        if i + 1 == len(table.sigma) or not table.corrects[i + 1]:
            yield state.x


def dpmpp_2m(denoise: Denoise, noise: jax.Array, sigmas: Sequence[float]) -> jax.Array:
    """DPM-Solver++(2M) (Algorithm 2 of arXiv 2211.01095), in the sigma schedule: N evaluations for N steps.

    The first step and the last, which ends at 0, are of first order.
    """
    rows: list[tuple[float, float, float, float]] = []
    before = math.nan
    for sigma, end in itertools.pairwise(sigmas):
        h = math.log(sigma / end) if end > 0 else math.inf  # lambda = -ln sigma
        extrapolate = h / before / 2 if rows and end > 0 and before > 0 else 0.0  # 1 / (2 r)
        rows.append((sigma, end / sigma, -math.expm1(-h), extrapolate))
        before = h

    def body(carry, row):
        x, last = carry
        sigma, shrink, gain, extrapolate = row
        denoised = denoise(x, sigma)
        x = shrink * x + gain * (denoised + extrapolate * (denoised - last))
        return (x, denoised), None

    x = _start(noise, sigmas)
    (x, _), _ = lax.scan(body, (x, x), tuple(np.asarray(rows, x.dtype).T))
    return x


def _start(noise: jax.Array, sigmas: Sequence[float]) -> jax.Array:
    return noise * sigmas[0]


def guided(denoise: Denoise, guide: Denoise, weight: float, interval: tuple[float, float] = (0.0, math.inf)) -> Denoise:
    """D_guide + weight (D - D_guide) where lo < sigma <= hi, and D elsewhere (arXiv 2406.02507 Eq. 3, 2404.07724).

    Classifier-free guidance, if `guide` is unconditional; autoguidance, if it is a worse version of the network.
    It is not evaluated where it is not needed.
    """
    if weight == 1:
        return denoise
    lo, hi = interval

    def guided_denoise(x, sigma):
        denoised = denoise(x, sigma)

        def mix(denoised):
            other = guide(x, sigma)
            if abs(weight) < 0.5:  # as torch.lerp
                return other + weight * (denoised - other)
            return denoised - (1 - weight) * (denoised - other)

        if (lo, hi) == (0, math.inf):
            return mix(denoised)
        return lax.cond((lo < sigma) & (sigma <= hi), mix, lambda denoised: denoised, denoised)

    return guided_denoise


SAMPLERS: dict[str, Callable[..., jax.Array]] = {"heun": heun, "euler": euler, "dpmpp-2m": dpmpp_2m}


@dataclass(frozen=True)
class Settings:
    """How to sample. The defaults are those of the published results, without guidance.

    Raises: ValueError for values that make no sense.
    """

    sampler: str = "heun"  # one of SAMPLERS
    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    guidance: float = 1.0  # weight of the guided denoiser; 1 is no guidance
    interval: tuple[float, float] = (0.0, math.inf)  # noise levels (lo, hi] where there is guidance
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
                self.churn.S_churn > 0 and self.sampler == "dpmpp-2m",
                "churn is for the samplers heun and euler: dpmpp-2m is deterministic",
            ),
        ):
            if wrong:
                raise ValueError(why)
        try:
            with np.errstate(over="ignore"):
                levels = self.sigmas[:-1]
        except OverflowError:
            levels = [math.inf]
        if not all(0 < level < math.inf for level in levels):
            raise ValueError("the schedule's noise levels are beyond float32: choose others, or another rho")

    @property
    def sigmas(self) -> list[float]:
        """The noise levels, from sigma_max to 0, as NVlabs' code has them."""
        return noise_levels(self.num_steps, self.sigma_min, self.sigma_max, self.rho, np.float32)

    @property
    def churn_draws(self) -> int:
        """How many noises the trajectory takes beside the first."""
        return self.churn.draws(self.sigmas)


DEFAULT = Settings()


def sample(
    net: Precond,
    variables: Any,
    noise: jax.Array,
    labels: jax.Array | None = None,
    *,
    guide: Network | None = None,
    churn_noise: jax.Array | None = None,
    settings: Settings = DEFAULT,
) -> jax.Array:
    """Images or latents [N, C, H, W] in float32, as one compiled program.

    noise: unit noise [N, C, H, W]. labels: one-hot [N, label_dim] or None (`jax.nn.one_hot`). guide: the guiding
    network and its variables, needed unless settings.guidance is 1; one without labels is asked without.
    churn_noise: unit noise [settings.churn_draws, N, C, H, W], where that is not 0.
    Raises: ValueError if the guide does not fit, or what it takes is missing.
    """
    config = net.config
    image, given = (config.img_channels, config.img_resolution, config.img_resolution), jnp.shape(noise)
    if given[1:] != image:
        raise ValueError(f"noise must be [N, {', '.join(map(str, image))}], not {list(given)}")
    if labels is not None and config.label_dim and jnp.shape(labels) != (given[0], config.label_dim):
        raise ValueError(f"labels must be one-hot [{given[0]}, {config.label_dim}], not {list(jnp.shape(labels))}")
    wanted, found = (settings.churn_draws, *given), (0, *given) if churn_noise is None else jnp.shape(churn_noise)
    if wanted != found:
        raise ValueError(f"these settings take churn_noise {list(wanted)}, not {list(found)}")
    guide = used_guide(net, guide, settings)
    nets, both = zip(fold(net, variables), fold(*guide) if guide else (None, None), strict=True)
    return _sample(nets, settings, both, noise, labels, churn_noise)


def used_guide(net: Precond, guide: Network | None, settings: Settings) -> Network | None:
    """The guide, or None where there is no guidance.

    Raises: ValueError if it is missing, denoises images of another shape, or has other labels.
    """
    if settings.guidance == 1:
        return None
    if guide is None:
        raise ValueError(f"guidance {settings.guidance:g} needs a guide")
    for field in ("img_channels", "img_resolution", "label_dim"):
        ours, theirs = getattr(net.config, field), getattr(guide[0].config, field)
        if ours != theirs and (field, theirs) != ("label_dim", 0):
            raise ValueError(f"the guide has {field} {theirs}, and the network {ours}")
    return guide


def trajectory(nets: tuple[Precond, Precond | None], settings: Settings, variables, noise, labels, churn_noise):
    """`sample`, to be compiled, of folded networks. variables: of both; the guide is None where there is none."""
    net, guide = nets

    def denoiser(net, variables) -> Denoise:
        return lambda x, sigma: net.apply(variables, x, sigma, labels)

    denoise = denoiser(net, variables[0])
    if guide is not None:
        denoise = guided(denoise, denoiser(guide, variables[1]), settings.guidance, settings.interval)
    full = wide(net.dtype)
    extra = () if churn_noise is None else (settings.churn, jnp.asarray(churn_noise, full))
    return SAMPLERS[settings.sampler](denoise, jnp.asarray(noise, full), settings.sigmas, *extra)


_sample = jax.jit(trajectory, static_argnums=(0, 1))
