"""Samplers: from noise to images, over a denoiser D(x; sigma) (arXiv 2206.00364), and guidance (arXiv 2406.02507).

    images = sample(net, variables, noise, labels, guide=(guide_net, guide_variables), settings=Settings(guidance=1.9))

A sampler is a function of (denoise, noise, sigmas), where denoise(x, sigma) -> D takes x [N, C, H, W] and one noise
level: what `denoiser` makes of a network, or any other. It evaluates the denoiser in one place, within `lax.scan`: a
trajectory of any length compiles the network once. Numbers of every step are worked out in float64, before anything is
traced.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_edm2.folding import fold
from jax_edm2.method import Denoise, Method
from jax_edm2.network import Precond
from jax_edm2.ops import wide
from jax_edm2.samplers import ancestral_method, dpmpp_method, rk4_method
from jax_edm2.settings import NO_CHURN, SAMPLERS, Churn, Settings
from jax_edm2.shapes import ChurnNoise, Images, Labels

Network = tuple[Precond, Any]  # and its variables


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

    @classmethod
    def first(cls, x: jax.Array) -> "_State":
        return cls(x, x, jnp.zeros_like(x))


def _advance(denoise: Denoise, state: _State, at: _Evaluation, noises: jax.Array | None) -> _State:
    x = state.x
    if noises is not None:
        x = x + at.noise * noises[at.draw]
    slope = (x - denoise(x, at.sigma)) / at.sigma
    start = jnp.where(at.corrects > 0, state.start, x)
    mean = jnp.where(at.corrects > 0, (state.slope + slope) / 2, slope)
    return _State(start + at.step * mean, start, slope)


def _runge(sigmas: Sequence[float], churn: Churn, dtype: Any, order: int) -> Method:
    return Method(_evaluations(sigmas, churn, order, dtype), _State.first, _advance)


def heun(
    denoise: Denoise,
    noise: Images,
    sigmas: Sequence[float],
    churn: Churn = NO_CHURN,
    churn_noise: ChurnNoise | None = None,
) -> Images:
    """The second-order sampler (Algorithms 1 and 2 of arXiv 2206.00364): [N, C, H, W] after 2 S - 1 evaluations.

    noise: unit noise [N, C, H, W]; computed in its dtype. sigmas: S + 1 noise levels for S steps, falling, the last 0
    (`noise_levels`). churn_noise: unit noise [draws, N, C, H, W] for the `churn.draws(sigmas)` steps that add some.
    Raises: ValueError if there is another number of draws.
    """
    return _integrate(denoise, noise, sigmas, churn, churn_noise, order=2)


def euler(
    denoise: Denoise,
    noise: Images,
    sigmas: Sequence[float],
    churn: Churn = NO_CHURN,
    churn_noise: ChurnNoise | None = None,
) -> Images:
    """As `heun`, without its corrections: S evaluations for S steps. Without churn this is DDIM (arXiv 2010.02502)."""
    return _integrate(denoise, noise, sigmas, churn, churn_noise, order=1)


def _integrate(denoise, noise, sigmas, churn, churn_noise, order):
    if (draws := churn.draws(sigmas)) != (0 if churn_noise is None else len(churn_noise)):
        raise ValueError(f"this schedule and churn take churn_noise [{draws}, N, C, H, W]")
    return _runge(sigmas, churn, noise.dtype, order).run(denoise, noise, sigmas, churn_noise)


def heun_states(denoise: Denoise, noise: Images, sigmas: Sequence[float]) -> Iterator[Images]:
    """x [N, C, H, W] at every noise level of the deterministic `heun`, from noise times sigmas[0] to the sample.

    noise, sigmas: as for `heun`.
    A loop in Python: denoise may be anything, and is asked for one evaluation after the other.
    """
    state, table = _State.first(x := noise * sigmas[0]), _evaluations(sigmas, NO_CHURN, 2, x.dtype)
    yield x
    for i in range(len(table.sigma)):
        state = _advance(denoise, state, _Evaluation(*(column[i] for column in table)), None)
        if i + 1 == len(table.sigma) or not table.corrects[i + 1]:
            yield state.x


def guided(denoise: Denoise, guide: Denoise, weight: float, interval: tuple[float, float] = (0.0, math.inf)) -> Denoise:
    """D_guide + weight (D - D_guide) where lo < sigma <= hi, and D elsewhere (arXiv 2406.02507 Eq. 3, 2404.07724).

    Both take x [N, C, H, W] and one noise level, and give [N, C, H, W]. weight: finite; 1 gives `denoise` itself.
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


def denoiser(
    net: Precond,
    variables: Any,
    labels: Labels | None = None,
    *,
    guide: Network | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, math.inf),
    unconditional: bool = False,
) -> Denoise:
    """What the samplers take: denoise(x, sigma) -> D of a network, guided by another if `guidance` is not 1.

    D_w(x; sigma, c) = w D(x; sigma, c) + (1 - w) D_guide(x; sigma, c) (Eq. 3 of arXiv 2406.02507), with w `guidance`
    where lo < sigma <= hi of the `interval` (arXiv 2404.07724), and 1 elsewhere.

    denoise takes x [N, C, H, W] and sigma > 0, one noise level for all images (without an interval also [N]). It gives
    [N, C, H, W] in float32. labels: one-hot [N, label_dim] or None, for both networks; a guide that has no labels is
    asked without. guide: another network and its variables, needed unless `guidance` is 1. unconditional: the guide is
    asked without labels in any case, and is the network itself where no other is given: classifier-free guidance (arXiv
    2207.12598) by one network that was trained with labels dropped. Networks are taken as they are: see `fold` for
    faster ones.
    Raises: ValueError if the guide is missing, denoises images of another shape, or has other labels.
    """
    guide = used_guide(net, variables, guide, guidance, unconditional)

    def of(net: Any, variables: Any, labels: Any) -> Denoise:  # Any: net.apply's type does not say what it returns
        return lambda x, sigma: net.apply(variables, x, sigma, labels)

    denoise = of(net, variables, labels)
    if guide is None:
        return denoise
    return guided(denoise, of(*guide, None if unconditional else labels), guidance, interval)


def used_guide(
    net: Precond, variables: Any, guide: Network | None, guidance: float, unconditional: bool
) -> Network | None:
    """The guide, or None where there is no guidance.

    Raises: ValueError if it is missing, denoises images of another shape, or has other labels.
    """
    if guidance == 1:
        return None
    if unconditional and not net.config.label_dim:
        raise ValueError("unconditional guidance is for networks that have labels, and this one has none")
    if guide is None and unconditional:
        return net, variables
    if guide is None:
        raise ValueError(f"guidance {guidance:g} needs a guide, or unconditional=True where a network guides itself")
    for field in ("img_channels", "img_resolution", "label_dim"):
        ours, theirs = getattr(net.config, field), getattr(guide[0].config, field)
        if ours != theirs and (field, theirs) != ("label_dim", 0):
            raise ValueError(f"the guide has {field} {theirs}, and the network {ours}")
    return guide


DEFAULT = Settings()
_METHODS: dict[str, Callable[[Sequence[float], Churn, Any], Method]] = dict(
    zip(
        SAMPLERS,
        (
            partial(_runge, order=2),
            partial(_runge, order=1),
            lambda sigmas, _, dtype: dpmpp_method(sigmas, dtype, eta=0),
            lambda sigmas, _, dtype: dpmpp_method(sigmas, dtype, eta=1),
            lambda sigmas, _, dtype: ancestral_method(sigmas, dtype, eta=1),
            lambda sigmas, _, dtype: rk4_method(sigmas, dtype),
        ),
        strict=True,
    )
)


def sample(
    net: Precond,
    variables: Any,
    noise: Images,
    labels: Labels | None = None,
    *,
    guide: Network | None = None,
    churn_noise: ChurnNoise | None = None,
    settings: Settings = DEFAULT,
) -> Images:
    """Images from -1 to 1, or latents, [N, C, H, W] in float32, as one compiled program; networks are folded for it.

    noise: unit noise [N, C, H, W]. labels: one-hot [N, label_dim] or None (`jax.nn.one_hot`). guide: the guiding
    network and its variables, needed unless settings.guidance is 1 or settings.unconditional; one without labels is
    asked without.
    churn_noise: unit noise [settings.churn_draws, N, C, H, W], where that is not 0: of churn, or of a stochastic
    sampler's steps.
    Raises: ValueError if a shape is another, the guide does not fit or is missing, or that noise is missing or not
    wanted.
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
    nets, both = folded_pair(net, variables, guide, settings)
    return _sample(Trajectory(nets, settings), both, noise, labels, churn_noise)


def folded_pair(
    net: Precond, variables: Any, guide: Network | None, settings: Settings, platform: str | None = None
) -> tuple[tuple[Precond, Precond | None], tuple[Any, Any]]:
    """The network and the guide that the settings take, folded, and the variables of both; what guides itself is None.

    Raises: ValueError, as `used_guide`.
    """
    other = used_guide(net, variables, guide, settings.guidance, settings.unconditional)
    folded, folded_variables = fold(net, variables, platform)
    if other is None or guide is None:
        return (folded, None), (folded_variables, None)
    folded_guide, guide_variables = fold(*other, platform)
    return (folded, folded_guide), (folded_variables, guide_variables)


class Trajectory(NamedTuple):
    """`sample`, of a `folded_pair`: functions to be compiled. variables: of both, None where there is no guide."""

    nets: tuple[Precond, Precond | None]
    settings: Settings

    @property
    def dtype(self) -> Any:
        return wide(self.nets[0].dtype)

    @property
    def method(self) -> Method:
        return _METHODS[self.settings.sampler](self.settings.sigmas, self.settings.churn, self.dtype)

    def run(self, variables: Any, noise: Any, labels: Any, churn_noise: Any) -> jax.Array:
        noise, extra = (None if x is None else jnp.asarray(x, self.dtype) for x in (noise, churn_noise))
        return self.method.run(self._denoiser(variables, labels), noise, self.settings.sigmas, extra)

    def first(self, noise: Any) -> Any:
        """The state of `method` that `run` begins with."""
        return self.method.first(jnp.asarray(noise, self.dtype) * self.settings.sigmas[0])

    def advance(self, variables: Any, state: Any, start: Any, end: Any, labels: Any, churn_noise: Any) -> Any:
        """The state after the evaluations from `start` up to `end`; after all of them, it is that of `run`."""
        method, denoise = self.method, self._denoiser(variables, labels)
        extra = None if churn_noise is None else jnp.asarray(churn_noise, self.dtype)
        table = jax.tree.map(jnp.asarray, method.table)

        def body(index, state):
            return method.advance(denoise, state, jax.tree.map(lambda column: column[index], table), extra)

        return lax.fori_loop(start, end, body, state)

    def _denoiser(self, variables: Any, labels: Any) -> Denoise:
        (net, guide), settings = self.nets, self.settings
        return denoiser(
            net, variables[0], labels, guide=None if guide is None else (guide, variables[1]),
            guidance=settings.guidance, interval=settings.interval, unconditional=settings.unconditional,
        )  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _sample(trajectory: Trajectory, variables: Any, noise: Any, labels: Any, churn_noise: Any) -> jax.Array:
    return trajectory.run(variables, noise, labels, churn_noise)
