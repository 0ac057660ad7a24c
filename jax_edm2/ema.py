"""Averages of a network's weights over its training: power-function EMA, and others made of them afterwards.

Appendix C of arXiv 2312.02696. A profile weighs the weights of time t by t^gamma, up to the time of the average; its
relative standard deviation `std` says how long it is: 0.1 is a tenth of the training.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax

SHORTEST = 1e-9
LONGEST = 0.288675134594813  # 1 / sqrt(12), rounded up, where gamma is 0
WORST_CONDITION = 1e12
LEAST_OVERLAP = 0.01


def power_function_exponent(std: float) -> float:
    """Exponent gamma >= 0 of the power-function profile whose relative standard deviation is `std` (Eq. 126).

    std: from 1e-9 to 1 / sqrt(12) = 0.28868, which is the plain mean of the whole training. Longer profiles would weigh
    the beginning most, and from 0.30029 on there are none.

    Raises: ValueError for any other std.
    """
    std = _number(std)
    if not SHORTEST <= std <= LONGEST:
        raise ValueError(f"std must be from {SHORTEST:g} to {LONGEST:.6g}, which is 1 / sqrt(12), not {std}")
    t = std**-2
    return max(float(np.roots([1, 7, 16 - t, 12 - t]).real.max()), 0.0)


def update_average(
    average: Any, variables: Any, *, images_seen: "float | jax.Array", batch_size: "float | jax.Array", std: float
) -> Any:
    """Power-function EMA of `variables`, a tree like `average`, after the step ending at images_seen (Eq. 127).

    variables: as the optimiser left them, not normalised: NVlabs' training averages raw weights, and normalises them
    (`project_to_sphere`) at the beginning of the next step.
    average: before the first step a copy of the variables; in float32, as half precision would lose most steps.
    images_seen >= batch_size > 0: numbers, or traced by jit, then as floats from 2^31 images on. std: as for
    `power_function_exponent`.

    Raises: ValueError for numbers outside these ranges; those that are traced are not checked.
    """
    import jax
    import jax.numpy as jnp

    before: Any
    share: Any
    if isinstance(images_seen, jax.core.Tracer) or isinstance(batch_size, jax.core.Tracer):
        before = jnp.log1p(-batch_size / images_seen)  # the logarithm of a number that float32 takes for 1
        share = -jnp.expm1(before * (power_function_exponent(std) + 1))
    else:
        share = -math.expm1(_logarithm_of_beta(images_seen, batch_size, std))
    return jax.tree_util.tree_map(lambda old, new: old + (new - old) * share, average, variables)


def power_function_beta(*, images_seen: float, batch_size: float, std: float) -> float:
    """How much of an average stays in it, 0 <= beta < 1, at an update after the step ending at images_seen (Eq. 127).

    batch_size: images since the update before, which may be those of many steps. Raises: as `update_average`.
    """
    return math.exp(_logarithm_of_beta(images_seen, batch_size, std))


def _logarithm_of_beta(images_seen: Any, batch_size: Any, std: float) -> float:
    seen, batch = _number(images_seen), _number(batch_size)
    if not 0 < batch <= seen < math.inf:
        raise ValueError(f"images_seen must be finite and at least batch_size > 0, not {seen:g} and {batch:g}")
    before = math.log1p(-batch / seen) if batch < seen else -math.inf
    return before * (power_function_exponent(std) + 1)


def posthoc_average(
    trees: Sequence[Any], stored: Sequence[tuple[float, float]], wanted: tuple[float, float], *, dtype: Any = None
) -> Any:
    """An average of another length, made of averages that are in memory: a tree of numpy arrays like the last of them.

    trees: variables or parameters, alike; of variables, the constants are those of the last. stored, wanted: as for
    `posthoc_coefficients`, of each tree and of the one that is made. Sums are float64, and rounded once to dtype; by
    default that of the last tree's leaf. Of files, edm2-phema makes many at once, within bounds of memory.
    Raises: ValueError as `posthoc_coefficients`, and for trees that are not alike or not as many as stored.
    """
    import jax

    if len(trees) != len(stored):
        raise ValueError(f"{len(trees)} trees are not {len(stored)} stored averages")
    coefficients = posthoc_coefficients(stored, [wanted])[:, 0]

    def average(path, *leaves):
        if any(np.shape(leaf) != np.shape(leaves[-1]) for leaf in leaves):
            raise ValueError(f"{jax.tree_util.keystr(path)} has not the same shape in all trees")
        kind = leaves[-1].dtype if dtype is None else dtype
        if getattr(path[0] if path else None, "key", None) == "constants":
            return np.asarray(leaves[-1]).astype(kind)
        total = np.zeros(np.shape(leaves[-1]))
        for coefficient, leaf in zip(coefficients, leaves, strict=True):
            total += coefficient * np.asarray(leaf, np.float64)
        return total.astype(kind)

    return jax.tree_util.tree_map_with_path(average, *trees)


def posthoc_coefficients(stored: Sequence[tuple[float, float]], wanted: Sequence[tuple[float, float]]) -> np.ndarray:
    """How much of each stored average makes each wanted one: float64 [stored, wanted] (Algorithm 3).

    stored, wanted: of every average, how many images (in any unit) training had seen, > 0, and its std, as for
    `power_function_exponent`. A wanted average may be of another time than all that are stored, before or after. The
    least-squares fit of the wanted profiles by the stored ones, whose columns are scaled to sum to 1, as NVlabs' code
    does.

    Raises: ValueError for numbers outside these ranges; if two stored averages are the same, or all of them so much
      alike that the condition number of their correlations exceeds 1e12; if the fit has less than 1 % of a wanted one's
      area. Rounding errors grow as the condition number does: up to 1e12 coefficients were within 1.9e-5 of exact ones
      (relative to the largest), at 1e14 within 1 %, from 1e16 on they are noise.
    """
    stored, wanted = list(stored), list(wanted)
    inputs, outputs = _profiles(stored), _profiles(wanted)
    count = len(inputs[0])
    if not count:
        raise ValueError("there are no stored averages to make others of")
    first: dict[tuple[float, float], int] = {}
    for i, (time, std) in enumerate(stored):
        if (same := first.setdefault((float(time), float(std)), i)) != i:
            raise ValueError(f"stored averages {same} and {i} are the same one, of {time:g} images and std {std:g}")
    correlation = _correlations(inputs, inputs)
    condition = float(np.linalg.cond(correlation))
    if not condition <= WORST_CONDITION:
        raise ValueError(
            f"the {count} stored averages are too much alike to tell them apart: the condition number of their "
            f"correlations is {condition:.2g}, and the limit {WORST_CONDITION:g}; leave out some that are close in time"
        )
    solution = np.linalg.solve(correlation, _correlations(inputs, outputs))
    with np.errstate(all="ignore"):
        fit = solution * (_peak(inputs) * np.sqrt(inputs[0]))[:, None] / (_peak(outputs) * np.sqrt(outputs[0]))
        area = fit.sum(axis=0)
    for i, (time, std) in enumerate(wanted):
        if not area[i] >= LEAST_OVERLAP:
            raise ValueError(
                f"the stored averages have next to nothing in common with the wanted one of {time:g} images and std "
                f"{std:g}: their best fit has {area[i]:.1g} of its weight"
            )
    return fit / area


def posthoc_condition(stored: Sequence[tuple[float, float]]) -> float:
    """The condition number of stored averages' correlations: how many times larger coefficients make rounding errors.

    stored: as for `posthoc_coefficients`, which takes up to 1e12. Raises: ValueError for numbers outside its ranges.
    """
    inputs = _profiles(list(stored))
    return float(np.linalg.cond(_correlations(inputs, inputs)))


def nvlabs_coefficients(stored: Sequence[tuple[float, float]], wanted: Sequence[tuple[float, float]]) -> np.ndarray:
    """`posthoc_coefficients` as NVlabs' code rounds them: the inner products of Eq. 151 themselves, solved in float64.

    They are no more exact, and less so where the condition number is high; with them, averages are NVlabs' to the bit.
    """

    def products(a: Profiles, b: Profiles) -> np.ndarray:
        (time_a, gamma_a), (time_b, gamma_b) = (a[0][:, None], a[1][:, None]), (b[0][None], b[1][None])
        ratio = time_a / time_b
        power = np.where(time_a < time_b, gamma_b, -gamma_a)
        return (gamma_a + 1) * (gamma_b + 1) * ratio**power / ((gamma_a + gamma_b + 1) * np.maximum(time_a, time_b))

    inputs, outputs = _profiles(list(stored)), _profiles(list(wanted))
    solution = np.linalg.solve(products(inputs, inputs), products(inputs, outputs))
    return solution / np.sum(solution, axis=0)


Profiles = tuple[np.ndarray, np.ndarray]  # times [N] and exponents [N]


def _profiles(averages: Sequence[tuple[float, float]]) -> Profiles:
    times, exponents = [], []
    for time, std in averages:
        time = _number(time)
        if not 0 < time < math.inf:
            raise ValueError(f"the time of an average must be positive and finite, not {time}")
        times.append(time)
        exponents.append(power_function_exponent(std))
    return np.array(times), np.array(exponents)


def _correlations(a: Profiles, b: Profiles) -> np.ndarray:
    """Inner products [a, b] of profiles (Eq. 151), each divided by its norm, which neither units nor lengths change."""
    (time_a, gamma_a), (time_b, gamma_b) = (a[0][:, None], a[1][:, None]), b
    ratio = np.minimum(time_a, time_b) / np.maximum(time_a, time_b)
    later = np.where(time_a < time_b, gamma_b, gamma_a)
    at_once = np.sqrt(gamma_a + 0.5) * np.sqrt(gamma_b + 0.5) / ((gamma_a + gamma_b + 1) / 2)
    return at_once * ratio ** (later + 0.5)


def _peak(profiles: Profiles) -> np.ndarray:
    """Norms of profiles that end at time 1, the other way up: the areas of profiles of unit norm."""
    gamma = profiles[1]
    return np.sqrt(2 * gamma + 1) / (gamma + 1)


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of many digits
        return math.inf if value > 0 else -math.inf
