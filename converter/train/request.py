"""What is to be trained, with which data and how: a request, as a command or a program makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConverterError, UsageError
from ..sources import Fetching

KI, MI = 2**10, 2**20
PRESET = "edm2-img512-s"
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SNAPSHOT_DTYPES = ("float16", "bfloat16", "float32")


class TrainError(ConverterError):
    """A training that cannot be begun, or cannot go on."""


@dataclass(frozen=True)
class TrainRequest:
    """A training, whose results go to `outdir`; one that is there already is gone on with.

    data: a folder or ZIP of NVlabs' dataset_tool.py. preset: whose recipe is followed, and whose network is trained,
    unless one of three says otherwise: init, a snapshot, checkpoint or training state whose weights training begins
    with; resume, a training state, NVlabs' .pt or our own, that is gone on with; config_from, a file or a published
    network's name for the configuration alone (with resume, too, where a .pt does not say it). weights: which network
    of `init`, if it is a training state. network: fields of EDM2Config that are otherwise. cond: labels are used.

    What is None is as the preset has it: duration (images), batch (images in a step), channels, dropout, P_mean, P_std
    (a file's, where there is one), lr, decay (steps), rampup (images). loss_scaling, stds: as in `Recipe`.
    batch_gpu: most images at once on a device; 0 for no limit. fp16: as in NVlabs' network, by default True
    or the file's. precision: of activations; auto is float32 on CPUs, and without fp16, else bfloat16 on TPUs and
    float16 on GPUs. remat: as in `Precond`. fsdp: the state is split over the devices. status, snapshot, checkpoint:
    every so many images; 0 for never, but for the checkpoint at the end. snapshot_dtype: of snapshots' weights. pkl:
    snapshots also in NVlabs' container. keep: how many checkpoints stay, 0 for all. samples: pictures in the grid that
    is drawn at each snapshot, with a VAE's folder or file for latents, which may be fetched.
    Raises: UsageError for values that make no sense in themselves.
    """

    outdir: Path
    data: Path
    preset: str = PRESET
    init: Path | None = None
    resume: Path | None = None
    config_from: str | None = None
    weights: str | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    cond: bool = True
    duration: int | None = None
    batch: int | None = None
    channels: int | None = None
    dropout: float | None = None
    P_mean: float | None = None
    P_std: float | None = None
    lr: float | None = None
    decay: float | None = None
    rampup: int | None = None
    loss_scaling: float = 1.0
    stds: Sequence[float] = (0.05, 0.1)
    batch_gpu: int = 0
    fp16: bool | None = None
    precision: str = "auto"
    remat: bool = False
    fsdp: bool = False
    status: int = 128 * KI
    snapshot: int = 8 * MI
    checkpoint: int = 128 * MI
    snapshot_dtype: str = "float16"
    pkl: bool = False
    keep: int = 0
    tensorboard: bool = False
    samples: int = 64
    vae: str | None = None
    seed: int = 0
    fetching: Fetching = field(default_factory=Fetching)

    def __post_init__(self):
        if self.init is not None and (self.resume is not None or self.config_from is not None):
            other = "--resume" if self.resume is not None else "--config-from"
            raise UsageError(f"--init and {other} both say which network it is: give one of them")
        if self.weights is not None and self.init is None:
            raise UsageError("--weights chooses a network of --init FILE")
        if self.init or self.resume:
            fixed = sorted({*self.network, *(["channels"] if self.channels is not None else [])})
            if fixed:
                raise UsageError(f"{fixed[0]} is what the network of {self.init or self.resume} has: leave it out")
        if self.pkl and self.snapshot_dtype == "bfloat16":
            raise UsageError("--pkl: NVlabs' tools do not read bfloat16 snapshots; --snapshot-dtype float16 or float32")
        names = {f"{std:.3f}" for std in self.stds}
        if not all(0 < std < 0.2886 for std in self.stds) or len(names) < len(self.stds):
            found = ",".join(f"{std:g}" for std in self.stds)
            raise UsageError(f"--stds {found}: stds are above 0, below 0.2887, and differ in three decimals")
        if self.snapshot and self.snapshot < 1000:
            raise UsageError("--snapshot must be 1000 images or more, or 0: snapshots are named by thousands of images")
