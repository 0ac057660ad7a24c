"""What a request for a training comes to: network, recipe, data and where they begin. Nothing is computed yet."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_edm2.config import ConfigError, EDM2Config
from jax_edm2.decoding import PIXELS, VAE
from jax_edm2.messages import brief
from jax_edm2.record import Encoder, Loss, Record
from jax_edm2.training import ImageDataset, Recipe, recipe_for

from .. import presets
from ..errors import UsageError
from ..networks import in_memory, record_of
from ..opening import known, open_network
from .request import TrainError, TrainRequest

if TYPE_CHECKING:
    from jax_edm2.network import Precond

CHANNELS = {"xxs": 64, **presets.MODEL_CHANNELS}  # by the end of a preset's name; xxs was never published


@dataclass(frozen=True)
class Plan:
    """record: of the network, with its configuration, encoder and noise levels. variables: of `--init`."""

    request: TrainRequest
    record: Record
    recipe: Recipe
    dataset: ImageDataset
    variables: Any = None

    @property
    def config(self) -> EDM2Config:
        return self.record.config

    def dtype(self, platform: str) -> str:
        """What activations are computed in."""
        if self.request.precision != "auto":
            return self.request.precision
        return {"gpu": "float16", "tpu": "bfloat16"}.get(platform, "float32") if self.config.use_fp16 else "float32"

    def net(self, platform: str) -> "Precond":
        import jax.numpy as jnp

        from jax_edm2.network import Precond

        return Precond(self.config, jnp.dtype(self.dtype(platform)), remat=self.request.remat)

    def parts(self, devices: int) -> int:
        """How many parts a step is computed in, so that no device has more than --batch-gpu images.

        Raises: UsageError for a batch that does not divide.
        """
        batch, most = self.recipe.batch_size, self.request.batch_gpu
        if batch % devices:
            raise UsageError(f"--batch {batch} does not divide by {devices} devices")
        each = batch // devices
        most = min(most or each, each)
        if each % most:
            raise UsageError(f"--batch-gpu {most} does not divide the {each} images that each of {devices} devices has")
        return each // most


OF_DATA = ("img_resolution", "img_channels", "label_dim")


def make_plan(request: TrainRequest, stored: Record | None = None) -> Plan:
    """Opens the dataset, and reads what --init names. stored: of the training that is gone on with, if there is one.

    Raises: UsageError, TrainError, DatasetError, ConverterError, CheckpointError, OSError.
    """
    if not request.data.exists():
        raise TrainError(f"{request.data}: there is no such dataset; --data takes a folder or ZIP of dataset_tool.py")
    dataset = ImageDataset(request.data, labels=request.cond)
    if request.cond and not dataset.label_dim:
        raise TrainError(f"{request.data}: has no labels; --cond=False trains without")
    variables = None
    if stored is not None:
        record = _checked(request, stored, dataset)
        if not (request.init or request.resume):
            wanted = _configuration(request, dataset)
            if _architecture(wanted) != _architecture(record.config):
                raise TrainError(f"{request.outdir}: was begun with {_differences(record.config, wanted)}")
    elif request.init is not None:
        record, variables = _weights(request.init, request.weights)
        record = _checked(request, record, dataset)
    else:
        record = Record(_configuration(request, dataset))
    if record.encoder is None:
        record = dataclasses.replace(record, encoder=_encoder(request, dataset))
    config = record.config
    config = dataclasses.replace(
        config,
        dropout=config.dropout if request.dropout is None else request.dropout,
        use_fp16=config.use_fp16 if request.fp16 is None else request.fp16,
    )
    recipe = _recipe(request, record.loss, config.dropout)
    loss = Loss(recipe.P_mean, recipe.P_std, config.sigma_data)
    record = dataclasses.replace(record, config=config, loss=loss, digest="", dtype="", not_finite=None)
    return Plan(request, record, recipe, dataset, variables)


def _weights(path: Path, part: str | None) -> tuple[Record, Any]:
    """Of a snapshot, checkpoint or training state, in float32, for a training that begins with them."""
    with open_network(path, part) as weights:
        record = record_of(weights)
        variables = in_memory(weights, "float32")
    if record.not_finite:
        raise TrainError(f"{path}: has {record.not_finite:,} values that are NaN or infinite; nothing comes of it")
    record = record.of_changed_weights()
    return dataclasses.replace(record, average=None, code=None, training=None), variables


def _configuration(request: TrainRequest, dataset: ImageDataset) -> EDM2Config:
    """Of a network that is begun anew."""
    channels, height, width = dataset.shape
    if height != width:
        raise TrainError(f"{request.data}: images are {width} x {height}, and networks are for squares")
    if request.config_from is not None:
        fields = known(request.config_from).config.to_json()
    else:
        fields = {
            "model_channels": CHANNELS[request.preset.rpartition("-")[2]],
            "dropout": _recipe(request, None, None).dropout,
        }
    fields |= {
        "img_resolution": height,
        "img_channels": channels // 2 if dataset.dtype == np.float32 else channels,
        "label_dim": dataset.label_dim,
    }
    if request.channels is not None:
        fields["model_channels"] = request.channels
    names = {field.name for field in dataclasses.fields(EDM2Config)} - {*OF_DATA, "dropout", "use_fp16"}
    for name, value in request.network.items():
        if name not in names:
            raise UsageError(f"--network {name}: a network has {', '.join(sorted(names))}")
        fields[name] = value
    try:
        return EDM2Config(**fields)
    except ConfigError as error:
        raise UsageError(f"there is no such network: {error}") from None


def _recipe(request: TrainRequest, loss: Loss | None, dropout: float | None) -> Recipe:
    """The preset's with what is asked for, and the noise levels and dropout of a network that is there."""
    changes: dict[str, Any] = {
        "batch_size": request.batch, "duration": request.duration, "dropout": dropout,
        "P_mean": request.P_mean, "P_std": request.P_std, "learning_rate": request.lr, "decay_batches": request.decay,
        "rampup_images": request.rampup, "loss_scaling": request.loss_scaling, "stds": tuple(request.stds),
    }  # fmt: skip
    if loss is not None:
        changes["P_mean"] = loss.P_mean if request.P_mean is None else request.P_mean
        changes["P_std"] = loss.P_std if request.P_std is None else request.P_std
    try:
        return recipe_for(request.preset, **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        raise UsageError(str(error)) from None


def _architecture(config: EDM2Config) -> EDM2Config:
    """Without what a training may change."""
    return dataclasses.replace(config, dropout=0.0, use_fp16=True)


def _checked(request: TrainRequest, record: Record, dataset: ImageDataset) -> Record:
    """The dataset is one for this network."""
    config, (channels, height, width) = record.config, dataset.shape
    latents = record.encoder is not None and record.encoder.kind == VAE
    wanted = (2 if latents else 1) * config.img_channels, config.img_resolution, config.img_resolution
    if (channels, height, width) != wanted or (dataset.dtype == np.float32) != latents:
        kinds = {True: "latents (means and standard deviations)", False: "pictures"}
        raise TrainError(
            f"{request.data}: has {kinds[dataset.dtype == np.float32]} of {list(dataset.shape)}, and the network is "
            f"for {kinds[latents]} of {list(wanted)}"
        )
    if dataset.label_dim > config.label_dim:
        raise TrainError(
            f"{request.data}: has {dataset.label_dim} classes, and the network {config.label_dim}"
            + ("; --cond=False leaves labels out" if not config.label_dim else "")
        )
    return record


def _encoder(request: TrainRequest, dataset: ImageDataset) -> Encoder:
    if dataset.dtype == np.uint8:
        return Encoder(PIXELS)
    if dataset.shape[0] != 8:
        raise TrainError(
            f"{request.data}: has float32 images of {dataset.shape[0]} channels; latents have 8, means and standard "
            "deviations (dataset_tool.py encode)"
        )
    return Encoder.of_latents()


def _differences(one: EDM2Config, other: EDM2Config) -> str:
    pairs = zip(_architecture(one).to_json().items(), _architecture(other).to_json().values(), strict=True)
    found = [f"{name} {brief(was)}, not {brief(now)}" for (name, was), now in pairs if was != now]
    return "; ".join(found) + ": choose another --outdir, or the same network"
