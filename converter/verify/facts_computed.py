"""What facts say of that which was computed: the arrays of the file, the errors, the amplification."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jax_edm2.config import EDM2Config
from jax_edm2.messages import brief

from . import shapes
from .cases import Plan, Training
from .facts_values import FactsError, keys, number, numbers
from .taps import DENOISED, LOG_VARIANCE, block_scope

FLOATS = ("float64", "float32", "float16", "bfloat16")
SPARE = 256 * 2**20  # bytes of inputs that need no array of their size in the file

Arrays = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape, by key


def check_arrays(
    plan: Plan, config: EDM2Config, training: Training | None, reduced: bool, reference: str, arrays: Arrays
):
    """The file holds what was to be computed, in the shapes that the configuration gives. Raises: FactsError."""
    labels = config.label_dim and not reduced
    taps = shapes.kept(config) if reduced else shapes.tap_shapes(config, 1)
    expected = {key: (dtype, shape) for key, dtype, shape in shapes.of_the_rest(config, plan, training, reduced)}
    optional = {} if reduced else shapes.of_pictures(config, plan)
    fixed = dict(optional)
    cases = [f"seed{seed}" for seed in plan.seeds] if "forward" in plan.checks else []
    if len(cases) * len(taps) > len(arrays):
        raise FactsError("lacks arrays: its plan has more cases than it holds")
    for case in cases:
        for name, shape in shapes.of_a_case(config, plan.batch).items():
            expected[f"{case}/{name}"] = shapes.DOUBLE, shape
        found = {f"{case}/{tap}": (plan.batch, *shape[1:]) for tap, shape in taps.items()}
        if not reduced:
            clips = {f"{key}.amplified": shape for key, shape in found.items() if key.endswith("/clip")}
            found |= clips
        if labels:
            alone = shapes.unlabelled_shapes(config, plan.batch)
            found |= {f"{case} unlabelled/{tap}": shape for tap, shape in alone.items()}
        (expected if reference == "torch_ref" else optional).update(
            {key: (shapes.DOUBLE, shape) for key, shape in found.items()}
        )
    missing, extra = expected.keys() - arrays.keys(), arrays.keys() - expected.keys() - optional.keys()
    if missing or extra:
        key = min(missing or extra)
        raise FactsError(f"{'lacks' if missing else 'has'} the array {key!a:.200}{'' if missing else ' of no use'}")
    for key, (dtype, shape) in arrays.items():
        # A fork of the network, whose own source was run, may have values of another shape inside: that is a finding.
        wanted = (expected | fixed).get(key, (shapes.DOUBLE, shape))
        if (dtype, shape) != wanted:
            raise FactsError(f"has {key} of {dtype} {list(shape)}, which should be {wanted[0]} {list(wanted[1])}")
    _check_inputs(plan, config, arrays)


def _check_inputs(plan: Plan, config: EDM2Config, arrays: Arrays):
    """A batch of inputs is not much more than what the file holds. Raises: FactsError."""
    image = config.img_channels * config.img_resolution**2
    needed = 4 * plan.batch * (2 * image + config.label_dim)
    held = sum(int(dtype[2:]) * math.prod(shape) for dtype, shape in arrays.values())
    if set(plan.checks) - {"parameters", "throughput"} and needed > SPARE + 4 * held:
        raise FactsError(f"has a plan of {needed / 1e6:,.0f} MB of inputs, and {held / 1e6:,.0f} MB of truth")


def errors_of(found: Any, plan: Plan, config: EDM2Config, reduced: bool, arrays: Arrays) -> dict[str, Any]:
    """The errors of all that was computed, and of nothing else. Raises: FactsError."""
    cases = [f"seed{seed}" for seed in plan.seeds] if "forward" in plan.checks else []
    alone = [f"{case} unlabelled" for case in cases if config.label_dim and not reduced]
    rest = [check for check in ("gradients", "derivative", "trajectory", "training") if check in plan.checks]
    keys(found, "errors", [*cases, *alone, *rest])
    taps: dict[str, set[str]] = {case: set() for case in [*cases, *alone]}
    for key in arrays:
        case, _, tap = key.partition("/")
        if case in taps and tap not in shapes.OUTPUTS and not tap.endswith(".amplified"):
            taps[case].add(tap)
    kinds = ("accumulated",) if reduced else ("accumulated", "isolated")
    errors: dict[str, Any] = {}
    for case in cases:
        if not reduced and not {str(DENOISED), str(LOG_VARIANCE)} <= taps[case]:
            raise FactsError(f"lacks the outputs among the taps of {case}")
        if any(f"{case}/{tap}.amplified" not in arrays for tap in taps[case] if tap.endswith("/clip") and not reduced):
            raise FactsError(f"lacks the amplified clip of a block of {case}")
        keys(found[case], f"errors of {case}", [*kinds, "outputs"])
        errors[case] = {kind: _tap_errors(found[case][kind], f"{kind} errors of {case}", taps[case]) for kind in kinds}
        errors[case]["outputs"] = _pairs(found[case]["outputs"], f"errors of {case}'s outputs", shapes.OUTPUTS)
    for case in alone:
        keys(found[case], f"errors of {case}", ("accumulated",))
        errors[case] = {"accumulated": _tap_errors(found[case]["accumulated"], f"errors of {case}", taps[case])}
    if "gradients" in rest:
        named = [key for key in arrays if key == "loss" or key.startswith(tuple(f"{kind}/" for kind in shapes.MADE_OF))]
        errors["gradients"] = _pairs(found["gradients"], "errors of gradients", named)
    for check in (shapes.DERIVATIVE, shapes.TRAINING):
        if check in rest:
            named = [key for key in arrays if key.startswith(f"{check}/")]
            errors[check] = _pairs(found[check], f"errors of the {check}", named)
    if "trajectory" in rest:
        values = found["trajectory"]
        if not isinstance(values, list) or len(values) != plan.steps + 1:
            raise FactsError(f"errors of the trajectory must be {plan.steps + 1} numbers, not {brief(values)}")
        errors["trajectory"] = [number(value, "an error of the trajectory") for value in values]
    return errors


def _tap_errors(found: Any, where: str, taps: Iterable[str]) -> dict[str, Any]:
    keys(found, where, taps)
    errors = {}
    for tap, entry in found.items():
        keys(entry, f"{where} at {tap}", ("error", "condition", "dtype"))
        if entry["dtype"] not in FLOATS:
            raise FactsError(f"{where} at {tap} must be of one of {', '.join(FLOATS)}, not {brief(entry['dtype'])}")
        errors[tap] = _pair(entry, f"{where} at {tap}") | {"dtype": entry["dtype"]}
    return errors


def _pairs(found: Any, where: str, names: Iterable[str]) -> dict[str, Any]:
    keys(found, where, names)
    for name, entry in found.items():
        keys(entry, f"{where} at {name}", ("error", "condition"))
    return {name: _pair(entry, f"{where} at {name}") for name, entry in found.items()}


def _pair(entry: dict[str, Any], where: str) -> dict[str, float]:
    return {name: number(entry[name], f"{name} of {where}") for name in ("error", "condition")}


def amplification_of(found: Any, plan: Plan, config: EDM2Config, reduced: bool) -> dict[str, dict[str, float]]:
    clipped = "forward" in plan.checks and config.clip_act is not None and not reduced
    blocks = {block_scope(spec) for spec in config.architecture.encoder + config.architecture.decoder}
    keys(found, "amplification", [f"seed{seed}" for seed in plan.seeds] if clipped else [])
    for case, factors in found.items():
        keys(factors, f"amplification of {case}", (), blocks)
        found[case] = numbers(factors, f"amplification of {case}")
        if any(not 0 < factor < math.inf or math.frexp(factor)[0] != 0.5 for factor in found[case].values()):
            raise FactsError(f"amplification of {case} must be powers of two")
    return found
