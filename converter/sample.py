"""The pictures of NVlabs' generate_images.py, seed by seed, from a checkpoint or a snapshot.

report = sample(SampleRequest(outdir=Path("out"), net="digits.safetensors", seeds=range(100), grid=True))
"""

import contextlib
import dataclasses
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2 import __version__, strict_json
from jax_edm2.dtypes import not_finite

from . import embedded
from .errors import SampleError, UsageError
from .networks import LoadedNetwork, load_network, refuse_not_finite
from .progress import Progress, Warn, silent
from .sample_request import GRID_ALONE, Resolved, SampleRequest, resolve
from .sources import Location
from .vae import find_vae
from .writers import Writers, missing

if TYPE_CHECKING:
    from jax_edm2.generation import Generator

    from .pictures import Folder


@dataclass(frozen=True)
class SampleReport:
    """What was done. about: what every picture says of how it was made. sheet: the contact sheet, if there is one."""

    outdir: Path
    written: int
    skipped: int
    seconds: float
    about: dict[str, Any]
    sheet: Path | None

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

    from .pictures import Folder, contact_sheet

    resolved = resolve(request)
    if request.preset is not None and request.net is not None:
        stay = "whose guide is kept" if resolved.guide is not None else "of which nothing is used"
        warn(f"--net {resolved.net.name} is taken, and not the network of --preset {request.preset}, {stay}")
    if request.grid and jax.process_count() > 1:
        raise UsageError(GRID_ALONE)
    folder = Folder(request.outdir, subdirs=request.subdirs, suffix=".npy" if request.latents else ".png")
    sheet = request.outdir / "grid.png" if request.grid else None
    if sheet is not None and sheet.is_dir():
        raise SampleError(f"{sheet}: is a folder and would be lost; choose another --outdir")
    try:
        with jax.default_matmul_precision("highest"):  # of float32: embeddings and the VAE are always that
            prepared = _prepare(request, resolved, warn)
            counts = _draw(request, prepared, folder, warn, progress, steps)
    except BaseException as error:
        folder.leave()
        if not isinstance(error, JaxRuntimeError):
            raise
        text = " ".join(str(error).split())
        raise SampleError(f"JAX could not go on ({text:.150}); try a smaller --batch or --vae-batch") from None
    if sheet is not None:
        contact_sheet([folder.file(seed) for seed in request.seeds], sheet)
    return SampleReport(request.outdir, *counts, prepared.about, sheet)


# Networks


@dataclass(frozen=True)
class _Prepared:
    """The network's name, its generator, what every picture says of where it comes from, and the shape [C, H, W]."""

    name: str
    generator: "Generator"
    about: dict[str, Any]
    shape: tuple[int, ...]


def _prepare(request: SampleRequest, resolved: Resolved, warn: Warn) -> _Prepared:
    import jax

    from jax_edm2.decoding import make_decoder
    from jax_edm2.generation import Generator

    from .pictures import MODES

    main = _load(request, resolved.net, warn)  # its digest is checked: it goes into every picture
    guide = None if resolved.guide is None else _load(request, resolved.guide, warn)
    channels, size = main.net.config.img_channels, main.net.config.img_resolution
    shape = channels, size, size
    try:
        decoder = None
        if not request.latents:
            vae = find_vae(main.record.encoder, request.vae, request.fetching)
            if vae is None and channels not in MODES:
                raise SampleError(
                    f"{main.name}: draws {channels} channels and names no VAE: no pictures; use --latents"
                )
            if vae is not None:
                shape = vae[0].config.out_channels, size * vae[0].scale, size * vae[0].scale
            decoder = make_decoder(main.record.encoder, vae, request.vae_batch)
        generator = Generator(
            main.net, main.variables, guide=(guide.net, guide.variables) if guide else None,
            settings=resolved.settings, rng=request.rng, class_idx=request.class_idx, decoder=decoder,
        )  # fmt: skip
    except ValueError as error:
        raise SampleError(f"{main.name}: {error}" if not guide else f"{main.name}, {guide.name}: {error}") from None
    about = {
        "network": _about(main),
        "guide": _about(guide) if guide else None,
        "settings": strict_json.clean(dataclasses.asdict(resolved.settings)),
        "class_idx": request.class_idx,
        "rng": request.rng,
        "precision": jax.numpy.dtype(main.net.dtype).name,
        "nvlabs_rounding": request.nvlabs_rounding,
        "edm2_jax": __version__,
    }
    return _Prepared(main.name, generator, about, shape)


def _about(network: LoadedNetwork) -> dict[str, Any]:
    code = network.record.code
    return {
        "name": network.name,
        "digest": network.record.digest,
        "code": None if code is None else dataclasses.asdict(code),
    }


def _load(request: SampleRequest, location: Location, warn: Warn) -> LoadedNetwork:
    import jax

    from jax_edm2.folding import nvlabs_gains

    def dtype(record):
        if request.precision != "auto":
            return request.precision
        return "float16" if jax.default_backend() == "gpu" and record.config.use_fp16 else "float32"

    loaded = load_network(request.fetching.bring(location), location.name, dtype)
    if line := embedded.warning(loaded.name, loaded.record.code):
        warn(line)
    refuse_not_finite(loaded.name, loaded.variables)
    if request.nvlabs_rounding:
        if "float16" not in loaded.record.dtype.split("+"):
            raise SampleError(
                f"{loaded.name}: is stored in {loaded.record.dtype}, and --nvlabs-rounding is for float16: convert it "
                "with --dtype keep"
            )
        loaded = dataclasses.replace(loaded, variables=nvlabs_gains(loaded.variables))
    return loaded


# Pictures


def _draw(
    request: SampleRequest,
    prepared: _Prepared,
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
    precise = "; try --precision=float32" if about["precision"] != "float32" else ""
    began = time.perf_counter()
    generator = prepared.generator
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(
            Writers(folder, about, stack.enter_context(progress(str(folder.path), len(todo))))
        )
        total = generator.evaluations * generator.batches(len(todo), request.batch)
        told = None if steps is None else stack.enter_context(steps(prepared.name, total))
        for batch in generator(todo, request.batch, advance=told):
            latents = np.asarray(batch.latents)
            if lost := [seed for seed, latent in zip(batch.seeds, latents, strict=False) if not_finite(latent)]:
                raise SampleError(f"the network gives values that are NaN or infinite for seed {lost[0]}{precise}")
            writers.write(batch, latents if request.latents else np.asarray(batch.pictures))
        writers.settle()
    return len(writers.done), len(mine) - len(todo), time.perf_counter() - began
