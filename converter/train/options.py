"""training_options.json, as NVlabs' tools write and read it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jax_edm2.config import EDM2Config
from jax_edm2.decoding import PIXELS
from jax_edm2.files import whole_or_nothing
from jax_edm2.messages import brief

from ..progress import Warn
from ..training_state import OPTIONS
from .plan import OF_DATA, Plan

# What may differ from run to run without another result.
_HARMLESS = ("total_nimg", "batch_gpu", "status_nimg", "snapshot_nimg", "checkpoint_nimg")


def options_of(plan: Plan) -> dict[str, Any]:
    """What NVlabs' train_edm2.py writes as training_options.json, and what it has no name for."""
    request, recipe, encoder = plan.request, plan.recipe, plan.record.encoder
    kind = encoder.kind if encoder is not None else PIXELS
    fields = {name: value for name, value in plan.config.to_json().items() if name not in OF_DATA}
    defaults = {field.name: field.default for field in dataclasses.fields(EDM2Config)}
    given = {name: value for name, value in fields.items() if value != _json(defaults[name])}
    given |= {name: fields[name] for name in ("model_channels", "dropout", "use_fp16")}
    return {
        "dataset_kwargs": {
            "class_name": "training.dataset.ImageFolderDataset", "path": str(request.data),
            "use_labels": request.cond,
        },
        "encoder_kwargs": {"class_name": f"training.encoders.{kind}"},
        "total_nimg": recipe.duration, "batch_size": recipe.batch_size,
        "network_kwargs": {"class_name": "training.networks_edm2.Precond", **given},
        "loss_kwargs": {
            "class_name": "training.training_loop.EDM2Loss", "P_mean": recipe.P_mean, "P_std": recipe.P_std,
        },
        "lr_kwargs": {
            "func_name": "training.training_loop.learning_rate_schedule", "ref_lr": recipe.learning_rate,
            "ref_batches": recipe.decay_batches, "rampup_Mimg": recipe.rampup_images / 1e6,
        },
        "ema_kwargs": {"class_name": "training.phema.PowerFunctionEMA", "stds": list(recipe.stds)},
        "batch_gpu": request.batch_gpu or None, "loss_scaling": recipe.loss_scaling,
        "status_nimg": request.status or None, "snapshot_nimg": request.snapshot or None,
        "checkpoint_nimg": request.checkpoint or None, "seed": request.seed,
    }  # fmt: skip


def write_options(plan: Plan, goes_on: bool, warn: Warn):
    """Write it into the plan's folder. goes_on: warn of what is not as it was. Raises: OSError."""
    outdir, options = plan.request.outdir, options_of(plan)
    path = outdir / OPTIONS
    if goes_on and path.exists():
        try:
            before = json.loads(path.read_text())
        except (ValueError, OSError):
            before = {}
        for line in _otherwise(before if isinstance(before, dict) else {}, options):
            warn(f"{outdir}: of this training, {line}")
    with whole_or_nothing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(options, indent=2) + "\n")


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a run's options is not as it was, and changes the result."""
    found = []
    for name, value in now.items():
        was = before.get(name)
        if name in _HARMLESS or was is None or was == value:
            continue
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            found += [
                f"{key} was {brief(was.get(key))} and is {brief(value[key])}"
                for key in value
                if was.get(key) != value[key]
            ]
        else:
            found.append(f"{name} was {brief(was)} and is {brief(value)}")
    return found
