"""What is to be measured, and with what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jax_edm2.files import Target

from ..drawing_request import DrawRequest
from ..errors import ConverterError, UsageError
from ..sources import Fetching

METRICS = ("fid", "fd_dinov2")
PUBLISHED = 50_000  # images that published figures are of


class MetricsError(ConverterError):
    """Pictures, statistics or networks of which no metric can be had."""


class Stopped(Exception):  # noqa: N818
    """Somebody wished it, and what was done is kept; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How features are made of pictures, and what is kept of that.

    metrics: which. batch: pictures at once on a device. inception, dinov2: files or URLs of the detectors' weights; by
    default the published ones. resume: a folder where moments are kept every `save_every` seconds, and statistics when
    they are done: the same request goes on from there, after whatever ended it.
    Raises: UsageError for a metric that is none.
    """

    metrics: Sequence[str] = METRICS
    batch: int = 64
    inception: str | None = None
    dinov2: str | None = None
    resume: Path | None = None
    save_every: float = 60.0
    fetching: Fetching = field(default_factory=Fetching)

    def __post_init__(self):
        if unknown := [metric for metric in self.metrics if metric not in METRICS]:
            raise UsageError(f"--metrics {unknown[0]!a:.40}: there are {' and '.join(METRICS)}")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise UsageError("--metrics lists none, or one twice")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """num: pictures, from `seed` on. ref: a statistics file or its URL, of what they are compared with."""

    ref: str
    num: int = PUBLISHED
    seed: int = 0
    detection: Detection = field(default_factory=Detection)


@dataclass(frozen=True, kw_only=True)
class CalcRequest(Compared):
    """Pictures beside a reference: a random choice of `num` of them, by `seed`, as NVlabs' tool makes it.

    images: a folder or ZIP. workers: threads that read pictures.
    """

    images: Path
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class GenRequest(Compared):
    """A network's samples beside a reference: of seeds from `seed` on, `num` of them, `repeats` times.

    Every repeat takes the seeds that follow, and the metric that counts is the least (arXiv 2312.02696, Section 5).
    """

    draw: DrawRequest
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class SweepRequest(GenRequest):
    """The metrics of averages of every length in `outstd`, with every guidance weight.

    indir, outkimg: the training's snapshots, as in `PhemaRequest`. outdir: for averages, progress, results and plot.
    draw: how to sample, and the guide; its `net` and `guidance` are what is swept. guidance: weights; 1 is none.
    Raises: UsageError for a weight that is there twice, or guidance without a guide.
    """

    indir: Target
    outdir: Path
    outstd: Sequence[float]
    guidance: Sequence[float] = (1.0,)
    outkimg: int | None = None

    def __post_init__(self):
        if len(set(self.guidance)) < len(self.guidance):
            raise UsageError(f"--guidance {','.join(f'{weight:g}' for weight in self.guidance)}: has a weight twice")
        if self.draw.gnet is None and not self.draw.unconditional and any(weight != 1 for weight in self.guidance):
            raise UsageError("--guidance needs a guiding network: --gnet, or --unconditional-guide")


@dataclass(frozen=True, kw_only=True)
class RefRequest:
    """Statistics of a dataset, for a file that NVlabs' tool reads as well. num: of a random choice; all by default."""

    data: Path
    dest: Target
    num: int | None = None
    seed: int = 0
    workers: int = 2
    force: bool = False
    detection: Detection = field(default_factory=Detection)
