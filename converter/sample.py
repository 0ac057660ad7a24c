"""The pictures of NVlabs' generate_images.py, seed by seed, from a checkpoint or a snapshot.

report = sample(SampleRequest(outdir=Path("out"), net="digits.safetensors", seeds=range(100), grid=True))
"""

import contextlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.files import Target, within

from .devices import gave_up
from .drawing import Prepared, prepare
from .drawing_request import DrawRequest, resolve
from .errors import SampleError, UsageError
from .progress import Progress, Warn, silent
from .writers import Writers, missing

if TYPE_CHECKING:
    from .folders import Folder


GRID_ALONE = "--grid goes with neither --latents nor several processes"


@dataclass(frozen=True)
class SampleRequest(DrawRequest):
    """Pictures that are to be drawn, one for each of `seeds`, and the folder for them.

    latents: arrays of what the network gives are saved in place of pictures. subdirs: there is a folder for every 1,000
    seeds. grid: there is a contact sheet, too. skip_existing: pictures that are there, whole, and made in the same way,
    are left; force: those made otherwise are made again, else refused.
    Raises: UsageError for values that make no sense in themselves.
    """

    outdir: Target
    seeds: Sequence[int] = (16, 17, 18, 19)
    latents: bool = False
    subdirs: bool = False
    grid: bool = False
    skip_existing: bool = False
    force: bool = False

    def __post_init__(self):
        if self.grid and self.latents:
            raise UsageError(GRID_ALONE)
        super().__post_init__()
        if self.force and not self.skip_existing:
            raise UsageError("--force goes with --skip-existing; without, everything is made again")


@dataclass(frozen=True)
class SampleReport:
    """What was done. about: what every picture says of how it was made. sheet: the contact sheet, if there is one."""

    outdir: Target
    written: int
    skipped: int
    seconds: float
    about: dict[str, Any]
    sheet: Target | None

    def to_json(self) -> dict[str, Any]:
        counts = {"written": self.written, "skipped": self.skipped, "seconds": self.seconds}
        return {**counts, **self.about, "outdir": str(self.outdir)}


def sample(
    request: SampleRequest, *, warn: Warn = warnings.warn, progress: Progress = silent, steps: Progress | None = None
) -> SampleReport:
    """Draw what is requested, on all devices that JAX has; of several processes, each draws its share of the seeds.

    JAX is brought up as it likes, unless `converter.devices.start` did it before.
    warn: is given a line for each thing that the user should know. progress: of the folder's name and the number of its
    pictures; it has been told of all that are there when an error or an interruption ends it. steps: likewise of the
    network's evaluations, for all batches.
    Raises: UsageError, ConverterError, CheckpointError, OSError.
    """
    import jax
    from jax.errors import JaxRuntimeError

    from .folders import folder_at
    from .pictures import contact_sheet

    resolved = resolve(request)
    if request.grid and jax.process_count() > 1:
        raise UsageError(GRID_ALONE)
    sheet = within(request.outdir, "grid.png") if request.grid else None
    suffix = ".npy" if request.latents else ".png"
    with contextlib.closing(
        folder_at(request.outdir, subdirs=request.subdirs, suffix=suffix, keep=request.grid)
    ) as folder:
        if isinstance(sheet, Path) and sheet.is_dir():
            raise SampleError(f"{sheet}: is a folder and would be lost; choose another --outdir")
        try:
            with jax.default_matmul_precision("highest"):
                prepared = prepare(request, resolved, warn, latents=request.latents)
                counts = _draw(request, prepared, folder, warn, progress, steps)
        except BaseException as error:
            folder.leave()
            if not isinstance(error, JaxRuntimeError):
                raise
            raise SampleError(gave_up(error, "try a smaller --batch or --vae-batch")) from None
        if sheet is not None:
            contact_sheet([folder.file(seed) for seed in request.seeds], sheet)
    return SampleReport(request.outdir, *counts, prepared.about, sheet)


# Pictures


def _draw(
    request: SampleRequest,
    prepared: Prepared,
    folder: "Folder",
    warn: Warn,
    progress: Progress,
    steps: Progress | None,
) -> tuple[int, int, float]:
    """How many pictures were written and how many were left where they are, and the seconds that it took."""
    import jax
    import numpy as np

    from jax_edm2.generation import share

    about = prepared.about
    mine = share(request.seeds, jax.process_index(), jax.process_count())
    todo = missing(mine, folder, prepared.shape, about, force=request.force) if request.skip_existing else mine
    if request.latents and len(todo) < len(mine):
        warn(f"{len(mine) - len(todo):,} arrays are left, which do not say how they were made")
    began = time.perf_counter()
    generator = prepared.generator
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(
            Writers(folder, about, stack.enter_context(progress(str(request.outdir), len(todo))))
        )
        total = generator.evaluations * generator.batches(len(todo), request.batch)
        told = None if steps is None else stack.enter_context(steps(prepared.name, total))
        for batch in generator(todo, request.batch, advance=told):
            latents = prepared.latents(batch)
            writers.write(batch, latents if request.latents else np.asarray(batch.pictures))
        writers.settle()
    return len(writers.done), len(mine) - len(todo), time.perf_counter() - began
