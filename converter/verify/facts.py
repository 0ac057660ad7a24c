"""The facts of a truth file: which there are, and the check that they are what they must be, before anyone uses them.

    plan            fields of a Plan
    config          fields of an EDM2Config
    snapshot        {name, sha256 (null in a golden), source (sha256 of the embedded source), and what else is known}
    reference       torch_ref or embedded
    parameters      {NAME: {shape, sha256 of the float32 bytes}}: every tensor of the snapshot
    amplification   {CASE: {BLOCK: power of two that the values before the clip were multiplied by}}
    not_finite      [KEY]: what is not finite in the truth
    training        settings and state that a training begins with (see `cases.Training`), or null without one
    gradient_sizes  {NAME: root mean square of the true gradient}
    errors          of PyTorch in the precision that is judged, with condition numbers (see `torch_side.conditioning`):
                    {CASE: {accumulated: {TAP: {error, condition, dtype}}, isolated: as accumulated,
                            outputs: {NAME: {error, condition}}}, "CASE unlabelled": {accumulated: as above},
                     gradients: {KEY: {error, condition}}, derivative, training: likewise, trajectory: [error]}
    repeat          largest difference of two runs of PyTorch, or null
    environment, switches, seconds   of PyTorch; `switches` has `problem`: why the precision is not in effect, or null
    golden          of a golden alone: see converter.verify.golden.check

A number that JSON does not have is a text: NaN, Infinity or -Infinity.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from jax_edm2.config import ConfigError, EDM2Config
from jax_edm2.ema import LONGEST, SHORTEST
from jax_edm2.messages import brief
from jax_edm2.state_layout import average_part

from ..training_state import MOST_STDS
from . import shapes
from .cases import Plan, PlanError, Training
from .facts_computed import Arrays, amplification_of, check_arrays, errors_of
from .facts_values import (
    LARGEST_GRADIENT,
    LONGEST_TEXT,
    FactsError,
    details,
    digest,
    keys,
    number,
    numbers,
    text,
)
from .verdict import KINDS, LARGEST_MEASURED, Tolerance, tolerance_of

REFERENCES = ("torch_ref", "embedded")
GOLDEN = (*Plan().checks, "training")  # checks that a golden has


@dataclass(frozen=True)
class Golden:
    """What makes a truth file a golden: see `converter.verify.golden.check`."""

    network: str
    normalised: str
    measured: dict[str, float]  # by KINDS
    on: list[dict[str, Any]]
    tolerance: Tolerance


@dataclass(frozen=True)
class Facts:
    """See above. In the order of the file."""

    plan: Plan
    config: EDM2Config
    snapshot: dict[str, Any]
    reference: str
    parameters: dict[str, dict[str, Any]]
    amplification: dict[str, dict[str, float]]
    not_finite: list[str]
    gradient_sizes: dict[str, float]
    training: Training | None
    errors: dict[str, Any]
    repeat: float | None
    environment: dict[str, Any]
    switches: dict[str, Any]
    seconds: float
    golden: Golden | None = None

    def to_json(self) -> dict[str, Any]:
        """As the file has them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found |= {"plan": asdict(self.plan), "config": self.config.to_json()}
        found["training"] = self.training and asdict(self.training)
        golden = found.pop("golden")
        return as_json(found if golden is None else {**found, "golden": asdict(golden)})


def as_json(value: Any) -> Any:
    """Facts as JSON has them: numbers that it lacks as text, and text that is too long without its end."""
    if isinstance(value, dict):
        return {str(key): as_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value[:LONGEST_TEXT] if isinstance(value, str) else value


FACTS = tuple(field.name for field in fields(Facts) if field.name != "golden")


def check(facts: Any, arrays: Arrays) -> Facts:
    """The facts of a file, which are what they must be.

    arrays: what the file holds, which must be what these facts are about. Raises: FactsError.
    """
    keys(facts, "the facts", FACTS, ("golden",))
    try:
        plan = Plan.from_json(facts["plan"])
    except PlanError as error:
        raise FactsError(f"has a plan that is none: {error}") from None
    config = _config(facts["config"], facts["parameters"])
    golden = _golden(facts["golden"]) if "golden" in facts else None
    reference, reduced = facts["reference"], golden is not None
    if reduced and (plan.checks, plan.precision, reference) != (GOLDEN, "float32", "torch_ref"):
        raise FactsError("is a golden of other checks, another precision or another reference than goldens have")
    if reference not in REFERENCES:
        raise FactsError(f"reference must be one of {', '.join(REFERENCES)}, not {brief(reference)}")
    _snapshot(facts["snapshot"])
    details(facts["environment"], "environment", ("torch", "device"))
    details(facts["switches"], "switches", ())
    if "problem" not in facts["switches"] or not isinstance(facts["switches"]["problem"], str | None):
        raise FactsError("switches must have a problem, or null for none")
    seconds = number(facts["seconds"], "seconds")
    repeat = None if facts["repeat"] is None else number(facts["repeat"], "repeat")
    not_finite = facts["not_finite"]
    if not isinstance(not_finite, list) or not all(isinstance(key, str) and key in arrays for key in not_finite):
        raise FactsError("not_finite must be a list of arrays that there are")
    training = _training(facts["training"], plan)
    check_arrays(plan, config, training, reduced, reference, arrays)
    errors = errors_of(facts["errors"], plan, config, reduced, arrays)
    amplification = amplification_of(facts["amplification"], plan, config, reduced)
    names = list(shapes.trained(config)) if "gradients" in plan.checks else []
    keys(facts["gradient_sizes"], "gradient_sizes", names)
    return Facts(
        plan=plan,
        config=config,
        snapshot=facts["snapshot"],
        reference=reference,
        parameters=facts["parameters"],
        amplification=amplification,
        not_finite=not_finite,
        gradient_sizes=numbers(facts["gradient_sizes"], "gradient_sizes", LARGEST_GRADIENT),
        training=training,
        errors=errors,
        repeat=repeat,
        environment=facts["environment"],
        switches=facts["switches"],
        seconds=seconds,
        golden=golden,
    )


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
    keys(tensors, "parameters", expected)
    for name, shape in expected.items():
        keys(tensors[name], f"parameters of {name}", ("shape", "sha256"))
        if tensors[name]["shape"] != list(shape) or not all(type(n) is int for n in tensors[name]["shape"]):
            raise FactsError(f"{name} must have the shape {list(shape)}, not {brief(tensors[name]['shape'])}")
        digest(tensors[name]["sha256"], f"the sha256 of {name}")
    return config


NO_SOURCE = "none"  # of what carries no source of its network


def _snapshot(found: Any):
    details(found, "snapshot", ("name", "source"))
    if "sha256" not in found:
        raise FactsError("snapshot must have a sha256, or null for none")
    if found["sha256"] is not None:
        digest(found["sha256"], "the snapshot's sha256")


def _training(found: Any, plan: Plan) -> Training | None:
    """Raises: FactsError, also where there is one and the plan has none, or the other way round."""
    if "training" not in plan.checks:
        if found is not None:
            raise FactsError("has a training, and a plan without one")
        return None
    keys(found, "training", ("images", "steps", "stds", "eps"))
    for name, most in (("images", 10**12), ("steps", 2**31 - 2**20)):
        if type(found[name]) is not int or not 0 <= found[name] <= most:
            raise FactsError(f"training must have {name} from 0 to {most:,}, not {brief(found[name])}")
    stds = found["stds"]
    good = isinstance(stds, list) and len(stds) <= MOST_STDS
    if not good or not all(type(std) is float and SHORTEST <= std <= LONGEST for std in stds):
        raise FactsError(f"training must have stds of averages, not {brief(stds)}")
    if len({average_part(std) for std in stds}) < len(stds):
        raise FactsError("training must have different stds")
    eps = number(found["eps"], "the training's eps", LARGEST_GRADIENT)
    if not 0 < eps < LARGEST_GRADIENT:
        raise FactsError(f"training must have an eps above 0, not {brief(found['eps'])}")
    return Training(found["images"], found["steps"], tuple(stds), eps)


def _golden(found: Any) -> Golden:
    keys(found, "golden", ("network", "normalised", "measured", "on", "tolerance"))
    text(found["network"], "the golden's network")
    digest(found["normalised"], "the golden's digest of normalised weights")
    keys(found["measured"], "what the golden measured", KINDS)
    measured = numbers(found["measured"], "what the golden measured")
    if not all(0 < value <= LARGEST_MEASURED for value in measured.values()):
        raise FactsError(f"has a golden with errors that are not above 0 and at most {LARGEST_MEASURED:g}")
    if not isinstance(found["on"], list) or not 1 <= len(found["on"]) <= 4:
        raise FactsError("must say what machines the golden was measured on")
    for machine in found["on"]:
        details(machine, "a machine of the golden", ())
    if found["tolerance"] != asdict(tolerance_of(measured)):
        raise FactsError("has a golden with another tolerance than its errors give")
    return Golden(found["network"], found["normalised"], measured, found["on"], tolerance_of(measured))
