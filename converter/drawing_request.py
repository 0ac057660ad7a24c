"""What is to draw: a request, completed by what its preset or checkpoint says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_edm2.checkpoint import read_record
from jax_edm2.record import Sampler
from jax_edm2.settings import NO_CHURN, Churn, Settings

from . import presets
from .errors import SampleError, UsageError
from .opening import is_checkpoint
from .sources import Fetching, Location, locate

DEFAULT = Sampler()
SCHEDULE = ("num_steps", "sigma_min", "sigma_max", "rho")


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """What is to be drawn with, and how.

    preset: a published network's name. net: the path of a checkpoint or snapshot, its URL in a store, or a snapshot's
    URL, in place of the preset's network. gnet: the guiding network, and guidance: its strength, 1 for none; by default
    the preset's, or what the checkpoint says. interval: of noise levels where there is guidance. unconditional: the
    guide is asked without labels, and is the network itself where there is no other. class_idx: by default a random one
    for each.
    batch: most pictures at once on a device. sampler, churn: as in `jax_edm2.Settings`; so are num_steps, sigma_min,
    sigma_max and rho, by default what the checkpoint says. rng: one of `jax_edm2.generation.RNGS`. precision: of the
    activations; auto is float16 on a GPU where generate_images.py would use it, else float32. nvlabs_rounding: gains
    are rounded as generate_images.py does. vae: by default what the network names. vae_batch: latents that are decoded
    at once on a device.
    Raises: UsageError for values that make no sense in themselves.
    """

    preset: str | None = None
    net: str | None = None
    gnet: str | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    unconditional: bool = False
    class_idx: int | None = None
    batch: int = 32
    sampler: str = Settings.sampler
    num_steps: int | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    churn: Churn = NO_CHURN
    rng: str = "torch-cuda"
    precision: str = "auto"
    nvlabs_rounding: bool = False
    vae: str | None = None
    vae_batch: int = 4
    fetching: Fetching = field(default_factory=Fetching)

    def __post_init__(self):
        self.settings(2.0)

    def settings(self, guidance: float, recorded: Sampler = DEFAULT) -> Settings:
        """The sampler's settings; `recorded` has those that are not given. Raises: UsageError."""
        if self.interval is not None and guidance == 1:
            raise UsageError("--guidance-interval needs --guidance")
        schedule: dict[str, Any] = {name: getattr(self, name) for name in SCHEDULE}
        schedule = {name: getattr(recorded, name) if given is None else given for name, given in schedule.items()}
        more: dict[str, Any] = {"interval": self.interval} if self.interval else {}
        if self.unconditional and guidance == 1:
            raise UsageError("--unconditional-guide needs --guidance, a number such as 3")
        try:
            return Settings(
                self.sampler, **schedule, guidance=guidance, churn=self.churn, unconditional=self.unconditional, **more
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


@dataclass(frozen=True)
class Resolved:
    """What a request comes to, with what its preset or checkpoint says."""

    net: Location
    guide: Location | None
    settings: Settings


def resolve(request: DrawRequest) -> Resolved:
    """Nothing is fetched, and of networks the record of a checkpoint alone is read.

    Raises: UsageError, ConverterError, CheckpointError, OSError.
    """
    net, guide, guidance, recorded = _networks(request)
    if request.fetching.sha256 is not None and guide is not None:
        raise UsageError("--sha256 is for one file, and with a guide there are two")
    return Resolved(net, guide, request.settings(guidance, recorded))


def _networks(request: DrawRequest) -> tuple[Location, Location | None, float, Sampler]:
    """The network, its guide, and how strong that guides: of the request, else of the preset, or of the checkpoint.

    And what the checkpoint says of sampling.
    """
    if request.preset is None and request.net is None:
        raise UsageError("give --preset NAME or --net PATH; edm2-convert --list-presets shows the presets")
    guidance, recorded = request.guidance, DEFAULT
    location, preset = locate(None, request.preset) if request.preset is not None else (None, None)
    if request.net is not None or location is None:
        location = _location(request.net or "")
    guide = _location(request.gnet) if request.gnet is not None else None
    path = Path(location.text)
    if location.stored_checkpoint:  # of which no more than the record is wanted now
        offline = request.fetching.offline
        recorded = read_record(request.fetching.bring(location) if offline else location.text).sampler
    elif not location.remote and is_checkpoint(path):
        recorded = read_record(path).sampler
    itself = request.unconditional  # then neither the preset's guide nor the checkpoint's is wanted
    if preset is not None and preset.guide and not itself:
        guide = guide or Location(presets.url(preset.guide))
        guidance = preset.guidance if guidance is None else guidance
    elif recorded.guide is not None and not itself:
        guide = guide or _beside(location, recorded.guide)
        guidance = recorded.guidance if guidance is None else guidance
    if guidance not in (None, 1) and guide is None and not itself:
        raise UsageError("--guidance needs a guiding network: --gnet, a guided preset, or --unconditional-guide")
    if guide is not None and guidance is None:
        raise UsageError("--gnet needs --guidance, a number such as 1.5")
    return location, guide if guidance != 1 else None, 1.0 if guidance is None else guidance, recorded


def _location(text: str) -> Location:
    location = Location(text)
    if not location.remote and not Path(text).exists():
        raise UsageError(f"{text}: there is no such file or folder")
    return location


def _beside(location: Location, name: str) -> Location:
    """The guide that a checkpoint's record names."""
    try:
        path = Path(location.text).absolute().with_name(name)
    except ValueError:
        raise SampleError(
            f"{location.text}: its record names a guide {name!a:.100}, which is no file name; give --gnet"
        ) from None
    return Location(f"{location.text.rpartition('/')[0]}/{name}" if location.stored else str(path))
