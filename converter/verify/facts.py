"""The facts of a truth file: which there are, and the check that they are what they must be, before anyone uses them.

    plan            fields of a Plan
    config          fields of an EDM2Config
    snapshot        {name, sha256 (null in a golden), source (sha256 of the embedded source), and what else is known}
    reference       torch_ref or embedded
    parameters      {NAME: {shape, sha256 of the float32 bytes}}: every tensor of the snapshot
    amplification   {CASE: {BLOCK: power of two that the values before the clip were multiplied by}}
    not_finite      [KEY]: what is not finite in the truth
    gradient_sizes  {NAME: root mean square of the true gradient}
    errors          of PyTorch in the precision that is judged, with condition numbers (see verify/conditioning.py):
                    {CASE: {accumulated: {TAP: {error, condition, dtype}}, isolated: as accumulated,
                            outputs: {NAME: {error, condition}}}, "CASE unlabelled": {accumulated: as above},
                     gradients: {KEY: {error, condition}}, trajectory: [error]}
    repeat          largest difference of two runs of PyTorch, or null
    environment, switches, seconds   of PyTorch; `switches` has `problem`: why the precision is not in effect, or null
    golden          of a golden alone: see verify/golden.py

A number that JSON does not have is a text: NaN, Infinity or -Infinity.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from converter.verify import shapes
from converter.verify.cases import Plan, PlanError
from converter.verify.taps import DENOISED, LOG_VARIANCE, block_scope
from converter.verify.verdict import KINDS, LARGEST_MEASURED, tolerance_of
from jax_edm2.config import ConfigError, EDM2Config
from jax_edm2.messages import brief

FACTS = (
    "plan", "config", "snapshot", "reference", "parameters", "amplification", "not_finite", "gradient_sizes", "errors",
    "repeat", "environment", "switches", "seconds",
)  # fmt: skip
REFERENCES = ("torch_ref", "embedded")
FLOATS = ("float64", "float32", "float16", "bfloat16")
NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")
LONGEST = 1000  # characters of a text
MOST_DETAILS = 100  # values of what is only told, as versions and switches
SPARE = 256 * 2**20  # bytes of inputs that need no array of their size in the file
LARGEST, LARGEST_GRADIENT = 1e150, 1e18  # of numbers, whose squares are numbers too, in float64 and in float32

Arrays = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape, by key


class FactsError(ValueError):
    """Facts that are not what they must be. The message is a phrase: 'repeat must be a number, not ...'."""


def as_json(value: Any) -> Any:
    """Facts as JSON has them: numbers that it lacks as text, and text that is too long without its end."""
    if isinstance(value, dict):
        return {str(key): as_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value[:LONGEST] if isinstance(value, str) else value


def check(facts: Any, arrays: Arrays) -> tuple[dict[str, Any], Plan, EDM2Config]:
    """The facts with their numbers, the plan and the configuration.

    arrays: what the file holds, which must be what these facts are about. Raises: FactsError.
    """
    _keys(facts, "the facts", FACTS, ("golden",))
    try:
        plan = Plan.from_json(facts["plan"])
    except PlanError as error:
        raise FactsError(f"has a plan that is none: {error}") from None
    config = _config(facts["config"], facts["parameters"])
    thin = "golden" in facts
    if thin:
        facts["golden"] = _golden(facts["golden"])
        if (plan.checks, plan.precision, facts["reference"]) != (Plan().checks, "float32", "torch_ref"):
            raise FactsError("is a golden of other checks, another precision or another reference than goldens have")
    if facts["reference"] not in REFERENCES:
        raise FactsError(f"reference must be one of {', '.join(REFERENCES)}, not {brief(facts['reference'])}")
    _snapshot(facts["snapshot"])
    _details(facts["environment"], "environment", ("torch", "device"))
    _details(facts["switches"], "switches", ())
    if "problem" not in facts["switches"] or not isinstance(facts["switches"]["problem"], str | None):
        raise FactsError("switches must have a problem, or null for none")
    facts["seconds"] = _number(facts["seconds"], "seconds")
    if facts["repeat"] is not None:
        facts["repeat"] = _number(facts["repeat"], "repeat")
    found = facts["not_finite"]
    if not isinstance(found, list) or not all(isinstance(key, str) and key in arrays for key in found):
        raise FactsError("not_finite must be a list of arrays that there are")
    _check_arrays(plan, config, thin, facts["reference"], arrays)
    facts["errors"] = _errors(facts["errors"], plan, config, thin, arrays)
    facts["amplification"] = _amplification(facts["amplification"], plan, config, thin)
    names = list(shapes.trained(config)) if "gradients" in plan.checks else []
    _keys(facts["gradient_sizes"], "gradient_sizes", names)
    facts["gradient_sizes"] = _numbers(facts["gradient_sizes"], "gradient_sizes", LARGEST_GRADIENT)
    return facts, plan, config


# What the network is


def _config(fields: Any, tensors: Any) -> EDM2Config:
    """Raises: FactsError, also where the configuration is not that of the parameters."""
    if not isinstance(fields, dict) or not isinstance(tensors, dict):
        raise FactsError("config and parameters must be objects")
    try:
        config = EDM2Config(**fields)
        architecture = config.architecture
    except ConfigError as error:
        raise FactsError(f"has a config that is none: {error}") from None
    except (TypeError, OverflowError):
        raise FactsError("has a config with other fields than a configuration has") from None
    if len(architecture.encoder) + len(architecture.decoder) > len(tensors):
        raise FactsError("has a config of more blocks than there are parameters")
    expected = shapes.parameters(config)
    _keys(tensors, "parameters", expected)
    for name, shape in expected.items():
        _keys(tensors[name], f"parameters of {name}", ("shape", "sha256"))
        if tensors[name]["shape"] != list(shape) or not all(type(n) is int for n in tensors[name]["shape"]):
            raise FactsError(f"{name} must have the shape {list(shape)}, not {brief(tensors[name]['shape'])}")
        _hash(tensors[name]["sha256"], f"the sha256 of {name}")
    return config


def _snapshot(found: Any):
    _details(found, "snapshot", ("name", "source"))
    if "sha256" not in found:
        raise FactsError("snapshot must have a sha256, or null for none")
    if found["sha256"] is not None:
        _hash(found["sha256"], "the snapshot's sha256")


def _golden(found: Any) -> dict[str, Any]:
    _keys(found, "golden", ("network", "normalised", "measured", "on", "tolerance"))
    _text(found["network"], "the golden's network")
    _hash(found["normalised"], "the golden's digest of normalised weights")
    _keys(found["measured"], "what the golden measured", KINDS)
    measured = _numbers(found["measured"], "what the golden measured")
    if not all(0 < value <= LARGEST_MEASURED for value in measured.values()):
        raise FactsError(f"has a golden with errors that are not above 0 and at most {LARGEST_MEASURED:g}")
    if not isinstance(found["on"], list) or not 1 <= len(found["on"]) <= 4:
        raise FactsError("must say what machines the golden was measured on")
    for machine in found["on"]:
        _details(machine, "a machine of the golden", ())
    if found["tolerance"] != asdict(tolerance_of(measured)):
        raise FactsError("has a golden with another tolerance than its errors give")
    return {**found, "measured": measured, "tolerance": asdict(tolerance_of(measured))}


# What was computed


def _check_arrays(plan: Plan, config: EDM2Config, thin: bool, reference: str, arrays: Arrays):
    """The file holds what was to be computed, in the shapes that the configuration gives. Raises: FactsError."""
    labels = config.label_dim and not thin
    taps = shapes.kept(config) if thin else shapes.tap_shapes(config, 1)
    expected = {key: (dtype, shape) for key, dtype, shape in shapes.of_the_rest(config, plan, thin)}
    optional: dict[str, tuple[str, tuple[int, ...]]] = {}
    cases = [f"seed{seed}" for seed in plan.seeds] if "forward" in plan.checks else []
    if len(cases) * len(taps) > len(arrays):
        raise FactsError("lacks arrays: its plan has more cases than it holds")
    for case in cases:
        for name, shape in shapes.of_a_case(config, plan.batch).items():
            expected[f"{case}/{name}"] = shapes.DOUBLE, shape
        found = {f"{case}/{tap}": (plan.batch, *shape[1:]) for tap, shape in taps.items()}
        if not thin:
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
        wanted = expected.get(key, (shapes.DOUBLE, shape))
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


def _errors(found: Any, plan: Plan, config: EDM2Config, thin: bool, arrays: Arrays) -> dict[str, Any]:
    """The errors of all that was computed, and of nothing else. Raises: FactsError."""
    cases = [f"seed{seed}" for seed in plan.seeds] if "forward" in plan.checks else []
    alone = [f"{case} unlabelled" for case in cases if config.label_dim and not thin]
    rest = [check for check in ("gradients", "trajectory") if check in plan.checks]
    _keys(found, "errors", [*cases, *alone, *rest])
    taps: dict[str, set[str]] = {case: set() for case in [*cases, *alone]}
    for key in arrays:
        case, _, tap = key.partition("/")
        if case in taps and tap not in shapes.OUTPUTS and not tap.endswith(".amplified"):
            taps[case].add(tap)
    kinds = ("accumulated",) if thin else ("accumulated", "isolated")
    errors: dict[str, Any] = {}
    for case in cases:
        if not thin and not {str(DENOISED), str(LOG_VARIANCE)} <= taps[case]:
            raise FactsError(f"lacks the outputs among the taps of {case}")
        if any(f"{case}/{tap}.amplified" not in arrays for tap in taps[case] if tap.endswith("/clip") and not thin):
            raise FactsError(f"lacks the amplified clip of a block of {case}")
        _keys(found[case], f"errors of {case}", [*kinds, "outputs"])
        errors[case] = {kind: _tap_errors(found[case][kind], f"{kind} errors of {case}", taps[case]) for kind in kinds}
        errors[case]["outputs"] = _pairs(found[case]["outputs"], f"errors of {case}'s outputs", shapes.OUTPUTS)
    for case in alone:
        _keys(found[case], f"errors of {case}", ("accumulated",))
        errors[case] = {"accumulated": _tap_errors(found[case]["accumulated"], f"errors of {case}", taps[case])}
    if "gradients" in rest:
        keys = [key for key in arrays if key == "loss" or key.startswith(tuple(f"{kind}/" for kind in shapes.MADE_OF))]
        errors["gradients"] = _pairs(found["gradients"], "errors of gradients", keys)
    if "trajectory" in rest:
        values = found["trajectory"]
        if not isinstance(values, list) or len(values) != plan.steps + 1:
            raise FactsError(f"errors of the trajectory must be {plan.steps + 1} numbers, not {brief(values)}")
        errors["trajectory"] = [_number(value, "an error of the trajectory") for value in values]
    return errors


def _tap_errors(found: Any, where: str, taps: Iterable[str]) -> dict[str, Any]:
    _keys(found, where, taps)
    errors = {}
    for tap, entry in found.items():
        _keys(entry, f"{where} at {tap}", ("error", "condition", "dtype"))
        if entry["dtype"] not in FLOATS:
            raise FactsError(f"{where} at {tap} must be of one of {', '.join(FLOATS)}, not {brief(entry['dtype'])}")
        errors[tap] = _pair(entry, f"{where} at {tap}") | {"dtype": entry["dtype"]}
    return errors


def _pairs(found: Any, where: str, names: Iterable[str]) -> dict[str, Any]:
    _keys(found, where, names)
    for name, entry in found.items():
        _keys(entry, f"{where} at {name}", ("error", "condition"))
    return {name: _pair(entry, f"{where} at {name}") for name, entry in found.items()}


def _pair(entry: dict[str, Any], where: str) -> dict[str, float]:
    return {name: _number(entry[name], f"{name} of {where}") for name in ("error", "condition")}


def _amplification(found: Any, plan: Plan, config: EDM2Config, thin: bool) -> dict[str, dict[str, float]]:
    clipped = "forward" in plan.checks and config.clip_act is not None and not thin
    blocks = {block_scope(spec) for spec in config.architecture.encoder + config.architecture.decoder}
    _keys(found, "amplification", [f"seed{seed}" for seed in plan.seeds] if clipped else [])
    for case, factors in found.items():
        _keys(factors, f"amplification of {case}", (), blocks)
        found[case] = _numbers(factors, f"amplification of {case}")
        if any(not 0 < factor < math.inf or math.frexp(factor)[0] != 0.5 for factor in found[case].values()):
            raise FactsError(f"amplification of {case} must be powers of two")
    return found


# Values


def _keys(found: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()):
    """Raises: FactsError for what is no object of these keys."""
    if not isinstance(found, dict):
        raise FactsError(f"{where} must be an object, not {brief(found)}")
    required = set(required)
    if missing := required - found.keys():
        raise FactsError(f"{where} must have {min(missing)!a:.200}")
    if extra := found.keys() - required - set(optional):
        raise FactsError(f"{where} must not have {brief(min(extra))}")


def _number(value: Any, where: str, most: float = LARGEST) -> float:
    """From 0, or none."""
    if isinstance(value, str) and value in NOT_NUMBERS:
        value = float(value)
    elif type(value) not in (int, float) or not -most < value < most:
        raise FactsError(f"{where} must be a number, not {brief(value)}")
    if value < 0:
        raise FactsError(f"{where} must not be below 0, as {brief(value)} is")
    return float(value)


def _numbers(found: dict[str, Any], where: str, most: float = LARGEST) -> dict[str, float]:
    return {name: _number(value, f"{where} of {name}", most) for name, value in found.items()}


def _text(value: Any, where: str):
    if not isinstance(value, str) or len(value) > LONGEST:
        raise FactsError(f"{where} must be a text of at most {LONGEST:,} characters, not {brief(value)}")


def _hash(value: Any, where: str):
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise FactsError(f"{where} must be 64 hexadecimal digits, not {brief(value)}")


def _details(found: Any, where: str, texts: Iterable[str]):
    """Values that are only told: few, flat and short. texts: keys that must be there, of texts."""
    _keys(found, where, texts, found if isinstance(found, dict) else ())
    for name in texts:
        _text(found[name], f"{where}'s {name}")
    values, count = [*found, *found.values()], 0
    while values:
        value, count = values.pop(), count + 1
        if isinstance(value, dict | list):
            values += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str):
            _text(value, f"a detail of {where}")
        if count > MOST_DETAILS:
            raise FactsError(f"{where} must have at most {MOST_DETAILS} values")
