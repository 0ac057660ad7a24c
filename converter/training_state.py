"""Training states of NVlabs' code, training-state-KIMG.pt: parameters, Adam's moments and two averages, in float32.

The file is a dictionary (NVlabs/edm2, `torch_utils/distributed.py`, CheckpointIO):

    state      {cur_nimg, total_elapsed_time}
    net        the network's state_dict
    loss_fn    {P_mean, P_std, sigma_data, ...}
    optimizer  torch.optim.Adam's state_dict, which counts the network's parameters
    ema        {stds, emas: a state_dict for each}

Nothing in NVlabs' own says how the network was constructed. That is taken from training_options.json beside it, or from
another network of the run, or from the tensors' shapes. Those that edm2-convert writes have a record besides.
"""

import dataclasses
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from jax_edm2 import strict_json
from jax_edm2.config import ConfigError, EDM2Config, check_tree
from jax_edm2.messages import brief, listing
from jax_edm2.record import KEY, Encoder, Loss, Record, RecordError, Training
from jax_edm2.state_layout import MOMENTS, NET, average_part

from .errors import SnapshotError
from .formats import torch_zip
from .formats.file import File, PickleError
from .formats.pickle_reader import Instance
from .formats.torch_legacy import TensorRecord
from .inference import InferenceError, assumptions, seen
from .names import jax_path, torch_name
from .snapshot import RGB, VAE, open_file
from .weights import Weights

OPTIONS = "training_options.json"
KEYS = dict(zip(MOMENTS, ("exp_avg", "exp_avg_sq"), strict=True))  # torch's names of Adam's moments
ADAM = {  # settings of torch's that a training of EDM2 leaves at this
    "weight_decay": 0, "amsgrad": False, "maximize": False, "capturable": False, "differentiable": False,
    "decoupled_weight_decay": False,
}  # fmt: skip
MOST_STDS = 16


@dataclass(frozen=True)
class TrainingState(Weights):
    """All tensors of a training state, by path in the JAX tree: net/params/..., mu/params/..., ema-0.050/params/..."""

    training: Training
    assumed: tuple[str, ...]

    def tree_path(self, name: str) -> str:
        return name

    @property
    def parts(self) -> tuple[str, ...]:
        """What --weights may be: net, ema-0.050, ..."""
        return (NET, *map(average_part, self.training.stds))


@dataclass(frozen=True)
class TrainedWeights(Weights):
    """The network, or an average of it, in a training state."""

    training: Training
    assumed: tuple[str, ...]
    std: float | None  # of the average; None of the network itself


@dataclass(frozen=True)
class Known:
    """What is known from elsewhere of the network that a training state is of."""

    config: EDM2Config
    encoder: Encoder | None
    where: str
    assumed: tuple[str, ...] = ()


def read_training_state(path: Path, known: Known | None = None) -> TrainingState:
    """Open one and check all of it but the tensors' values. known: its configuration, if that is not to be found out.

    Raises: SnapshotError.
    """
    file = File(open_file(path))
    try:
        return _interpret(path, file, torch_zip.read(file), known)
    except (PickleError, SnapshotError, InferenceError) as error:
        os.close(file.descriptor)
        raise SnapshotError(f"{path}: {error}") from None
    except BaseException:
        os.close(file.descriptor)
        raise


def chosen(state: TrainingState, part: str) -> TrainedWeights:
    """One of its networks, `part` of its parts; `state` must stay open."""
    start = f"{part}/"
    tensors = {
        torch_name(name.removeprefix(start)): record for name, record in state.tensors.items() if name.startswith(start)
    }
    std = None if part == NET else next(std for std in state.training.stds if average_part(std) == part)
    return TrainedWeights(
        state.path, state.file, state.config, tensors, state.encoder, state.loss, state.training, state.assumed, std
    )


def _interpret(path: Path, file: File, top: Any, known: Known | None) -> TrainingState:
    top = _dict(top, "it")
    missing = [key for key in ("state", "net", "loss_fn", "optimizer", "ema") if key not in top]
    if missing:
        raise SnapshotError(f"is a file of torch.save, but no training state of EDM2: it has no {missing[0]}")
    net = _tensors(top["net"], NET)
    state, ema, loss = _dict(top["state"], "state"), _dict(top["ema"], "ema"), _loss(top["loss_fn"])
    if known is None and KEY in top:
        known = _known(top[KEY])
    if known is None:
        known = _find_out(path, {name: record.shape for name, record in net.items()}, loss)
    config = known.config
    _check_shapes(NET, net, config, f"its tensors are not those of {known.where}")
    stds = ema.get("stds")
    if not isinstance(stds, list | tuple) or len(stds) > MOST_STDS or not all(_number(s) and 0 < s < 1 for s in stds):
        raise SnapshotError(f"its averages are of no standard deviations: {brief(stds)}")
    averages = ema.get("emas")
    if not isinstance(averages, list) or len(averages) != len(stds) or len({f"{std:.3f}" for std in stds}) < len(stds):
        raise SnapshotError("it has not one average for each standard deviation")
    tensors = {f"{NET}/{jax_path(name)}": record for name, record in net.items()}
    parameters = [name for name in net if jax_path(name).startswith("params/")]
    moments, training = _optimizer(file, _dict(top["optimizer"], "optimizer"), parameters, net)
    for part, by_name in moments.items():
        tensors |= {f"{part}/{jax_path(name)}": record for name, record in by_name.items()}
    for std, value in zip(stds, averages, strict=True):
        part = average_part(std)
        average = _tensors(value, part)
        _check_shapes(part, average, config, "its tensors are not the network's")
        tensors |= {f"{part}/{jax_path(name)}": record for name, record in average.items()}
    images, seconds = state.get("cur_nimg"), state.get("total_elapsed_time")
    if type(images) is not int or not 0 <= images <= 10**12 or not _number(seconds) or not 0 <= seconds < 1e12:
        raise SnapshotError(f"its state has seen {brief(images)} images in {brief(seconds)} s")
    training = dataclasses.replace(
        training, images=images, seconds=float(seconds), stds=tuple(float(std) for std in stds)
    )
    return TrainingState(path, file, config, tensors, known.encoder, loss, training, known.assumed)


def _dict(value: Any, what: str) -> dict[Any, Any]:
    value = value.state if isinstance(value, Instance) else value
    if not isinstance(value, dict):
        raise SnapshotError(f"is no training state of EDM2: {what} is no dictionary")
    return value


def _tensors(value: Any, what: str) -> dict[str, TensorRecord]:
    found = _dict(value, what)
    for name, record in found.items():
        if not isinstance(name, str) or not isinstance(record, TensorRecord):
            raise SnapshotError(f"is no training state of EDM2: {what} holds {brief(name)}, which is no tensor")
        if record.dtype != "float32":
            raise SnapshotError(f"its {what} has {brief(name)} in {record.dtype}; training states are in float32")
    return found


def _check_shapes(part: str, tensors: Mapping[str, TensorRecord], config: EDM2Config, what: str):
    problems = check_tree(config, {jax_path(name): record.shape for name, record in tensors.items()}, torch_name)
    if problems:
        raise SnapshotError(f"{part}: {what}: {listing(problems)}; --config-from names a network of the same run")


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _loss(value: Any) -> Loss:
    state = _dict(value, "loss_fn")
    numbers = [state.get(name) for name in ("P_mean", "P_std", "sigma_data")]
    if not all(_number(number) and abs(number) <= 1e6 for number in numbers):
        raise SnapshotError("its loss_fn has no P_mean, P_std and sigma_data")
    return Loss(*map(float, numbers))  # type: ignore[arg-type]


# Adam


def _optimizer(
    file: File, value: dict[Any, Any], parameters: list[str], net: Mapping[str, TensorRecord]
) -> tuple[dict[str, dict[str, TensorRecord]], Training]:
    """The moments by NVlabs' name, and how Adam is set; images, seconds and stds are not known here.

    Adam counts parameters as the network's modules have them, which is their order in its state_dict.
    """
    groups, states = value.get("param_groups"), value.get("state")
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        raise SnapshotError("its optimizer has not one group of parameters, as NVlabs' training has")
    group = groups[0]
    if group.get("params") != list(range(len(parameters))):
        raise SnapshotError(f"its optimizer does not count the network's {len(parameters)} parameters")
    for name, usual in ADAM.items():
        if group.get(name, usual) != usual:
            raise SnapshotError(f"its optimizer has {name} {brief(group[name])}; NVlabs' training has {usual}")
    rate, betas, eps = group.get("lr"), group.get("betas"), group.get("eps")
    betas = betas if isinstance(betas, list | tuple) and len(betas) == 2 else (None, None)
    if not _number(rate) or not all(_number(value) and 0 <= value <= 1 for value in (*betas, eps)) or not rate >= 0:
        raise SnapshotError("its optimizer has no lr, betas and eps of Adam's")
    if not isinstance(states, dict) or list(states) != list(range(len(parameters))):
        raise SnapshotError("its optimizer has not one state for each parameter: had training begun?")
    moments: dict[str, dict[str, TensorRecord]] = {part: {} for part in MOMENTS}
    steps = set()
    for number, name in enumerate(parameters):
        state = _dict(states[number], f"state {number} of the optimizer")
        if state.keys() != {"step", *KEYS.values()}:
            raise SnapshotError(f"its optimizer's state of {name} is not Adam's: {brief(sorted(map(str, state)))}")
        steps.add(_step(file, state["step"]))
        for part, key in KEYS.items():
            record = state[key]
            if not isinstance(record, TensorRecord) or (record.dtype, record.shape) != ("float32", net[name].shape):
                raise SnapshotError(f"its optimizer's {key} of {name} is not like it")
            moments[part][name] = record
    if len(steps) != 1:
        raise SnapshotError("its optimizer has taken more steps with some parameters than with others")
    return moments, Training(0, steps.pop(), 0.0, float(rate), tuple(map(float, betas)), float(eps or 0), ())


def _step(file: File, value: Any) -> int:
    if isinstance(value, TensorRecord) and (value.dtype, value.shape) == ("float32", ()):
        (value,) = struct.unpack("<f", file.read(value.data.offset, 4))
    if not _number(value) or value != int(value) or not 0 <= value < 2**31:
        raise SnapshotError("its optimizer counts its steps in an unknown way")
    return int(value)


# The configuration


def _known(text: Any) -> Known:
    """From the record that edm2-convert puts into the files that it writes."""
    if not isinstance(text, str):
        raise SnapshotError(f"its {KEY} is no text")
    try:
        record = Record.from_json(text)
    except RecordError as error:
        raise SnapshotError(str(error)) from None
    return Known(record.config, record.encoder, f"its {KEY} record", record.assumed or ())


def _find_out(path: Path, shapes: Mapping[str, tuple[int, ...]], loss: Loss) -> Known:
    said = seen(shapes)
    options = path.with_name(OPTIONS)
    try:
        if not options.exists():
            said["sigma_data"] = loss.sigma_data
            config = EDM2Config(**said)
            kind = RGB if config.img_channels == 3 else VAE
            assumed = (*assumptions(config, said), f"encoder={kind}")
            return Known(config, _encoder({"class_name": kind}), "the configuration that their shapes suggest", assumed)
        content = strict_json.load(options, most_bytes=2**20)
        network, encoder = (content.get(key) if isinstance(content, dict) else None for key in (
            "network_kwargs", "encoder_kwargs"))  # fmt: skip
        if not isinstance(network, dict) or not str(network.get("class_name")).endswith(".Precond"):
            raise SnapshotError(f"{options.name} beside it has no network_kwargs of a Precond; give --config-from")
        arguments = {key: value for key, value in network.items() if key != "class_name"}
        known = {field.name for field in dataclasses.fields(EDM2Config)}
        if unknown := sorted(arguments.keys() - known):
            raise SnapshotError(f"{options.name} beside it has the unknown argument {brief(unknown[0])}")
        shape = {key: said[key] for key in ("img_resolution", "img_channels", "label_dim")}
        return Known(EDM2Config(**shape | arguments), _encoder(encoder), f"the configuration in {options.name}")
    except strict_json.JSONError as error:
        raise SnapshotError(f"{options.name} beside it {error}; give --config-from") from None
    except ConfigError as error:
        raise SnapshotError(f"its configuration is impossible: {error}; give --config-from") from None


def _encoder(arguments: Any) -> Encoder | None:
    """NVlabs' encoders as their constructors make them."""
    if not isinstance(arguments, dict):
        return None
    kind = str(arguments.get("class_name")).rpartition(".")[2]
    if kind == RGB:
        return Encoder(RGB)
    if kind != VAE:
        return None
    names = ("vae_name", "raw_mean", "raw_std", "final_mean", "final_std")
    try:
        encoder = Encoder.of_latents(**{name: arguments[name] for name in names if name in arguments})
        return dataclasses.replace(encoder, vae=str(encoder.vae))
    except (ValueError, TypeError):
        raise SnapshotError(f"{OPTIONS} beside it has encoder_kwargs that make no {VAE}") from None
