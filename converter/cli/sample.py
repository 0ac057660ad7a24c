"""edm2-sample: the pictures of NVlabs' generate_images.py, seed by seed, from a checkpoint or a snapshot."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter import embedded, presets
from converter.cli.options import source_options
from converter.cli.run import run, say
from converter.cli.seeds import Seeds
from converter.devices import Cluster, start
from converter.errors import ConverterError
from converter.networks import LoadedNetwork, is_checkpoint, load_network
from converter.sources import Fetching, Location, locate
from converter.vae import find_vae
from jax_edm2 import __version__, strict_json
from jax_edm2.checkpoint import read_record
from jax_edm2.tensors import not_finite

if TYPE_CHECKING:
    from converter.pictures import Folder
    from jax_edm2.generation import Batch, Generator
    from jax_edm2.sampling import Settings

WRITERS = 4  # threads that write pictures

EPILOG = """\b
Examples:
  edm2-sample --preset=edm2-img512-s-guid-dino --outdir=out
  edm2-sample --preset=edm2-img64-s-fid --outdir=out --subdirs --seeds=0-49999 --batch=128
  edm2-sample --net=golden/digits.pkl --outdir=out --seeds=0-99 --grid
  edm2-sample --net=digits.safetensors --outdir=out --class=7 --sampler=dpmpp-2m --steps=16
  edm2-sample --net=golden/digits.pkl --gnet=golden/digits-guide.pkl --guidance=1.5 --outdir=out
\b
Two processes, each with all of its devices (on Slurm and TPU pods, --distributed alone):
  edm2-sample --net=digits.safetensors --outdir=out --seeds=0-999 \\
      --coordinator=host0:1234 --num-processes=2 --process-id=0

\b
Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted, 143
terminated; pictures that are finished are kept, and --skip-existing goes on from there.
"""

POSITIVE = click.FloatRange(min=0, min_open=True)


class SampleError(ConverterError):
    """Sampling that cannot be done as asked."""


class Interval(click.ParamType):
    """Noise levels LO,HI."""

    name = "LO,HI"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            lo, hi = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r:.100} is no interval of noise levels such as 0.28,2.9", param, ctx)
        return lo, hi


@dataclass(frozen=True)
class _Request:
    """The flags that say what is made of what."""

    net: Location
    guide: Location | None
    settings: "Settings"
    seeds: tuple[int, ...]
    class_idx: int | None
    batch: int
    rng: str
    precision: str
    nvlabs_rounding: bool
    vae: str | None
    vae_batch: int
    latents: bool


@click.command(name="edm2-sample", epilog=EPILOG, context_settings={"max_content_width": 100})
@source_options
@click.option("--net", metavar="PATH|URL", help="Network: a converted checkpoint, or a snapshot (.pkl) or its URL.")
@click.option("--gnet", metavar="PATH|URL", help="Guiding network.  [default: the preset's, or the checkpoint's]")
@click.option("--guidance", type=float, help="Its strength; 1 is no guidance.  [default: likewise]")
@click.option("--guidance-interval", type=Interval(), help="Guide at these noise levels only: above LO, up to HI.")
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for pictures.")
@click.option("--subdirs", is_flag=True, help="Make a folder for every 1000 seeds.")
@click.option("--seeds", type=Seeds(10_000_000), default="16-19", show_default=True, help="A picture each: 1,2,5-10.")
@click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class label.  [default: random]")
@click.option(
    "--batch", type=click.IntRange(1, 65536), default=32, show_default=True, help="Most pictures at once on a device."
)
@click.option(
    "--steps", "num_steps", type=click.IntRange(1, 10_000), default=32, show_default=True, help="Sampling steps."
)
@click.option("--sigma_min", type=POSITIVE, default=0.002, show_default=True, help="Lowest noise level.")
@click.option("--sigma_max", type=POSITIVE, default=80, show_default=True, help="Highest noise level.")
@click.option("--rho", type=POSITIVE, default=7, show_default=True, help="Exponent of the noise levels.")
@click.option("--S_churn", "S_churn", type=click.FloatRange(min=0), default=0, show_default=True, help="Stochasticity.")
@click.option("--S_min", "S_min", type=click.FloatRange(min=0), default=0, show_default=True, help="Its lowest level.")
@click.option(
    "--S_max",
    "S_max",
    type=click.FloatRange(min=0),
    default=float("inf"),
    show_default=True,
    help="Its highest level.",
)
@click.option("--S_noise", "S_noise", type=float, default=1, show_default=True, help="Inflation of its noise.")
@click.option(
    "--sampler", type=click.Choice(["heun", "euler", "dpmpp-2m"]), default="heun", show_default=True,
    help="heun is NVlabs'; the others take half the time for a step.",
)  # fmt: skip
@click.option(
    "--rng", type=click.Choice(["torch-cuda", "torch-cpu", "jax"]), default="torch-cuda", show_default=True,
    help="Whose random numbers; generate_images.py uses torch's on CUDA.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto", show_default=True,
    help="Of activations. auto: on a GPU float16 where generate_images.py would; else float32, without TF32.",
)  # fmt: skip
@click.option(
    "--nvlabs-rounding", is_flag=True,
    help="Round gains to float16 as generate_images.py does, which changes the network's output by some 2e-4.",
)  # fmt: skip
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "gpu", "tpu"]),
    default="auto",
    show_default=True,
    help="All of that kind are used.",
)
@click.option(
    "--vae", metavar="PATH|URL", help="diffusers' folder or safetensors file.  [default: what the network names]"
)
@click.option(
    "--vae-batch",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    help="Latents decoded at once on a device.",
)
@click.option("--latents", is_flag=True, help="Save what the network gives as float32 arrays (.npy), not as pictures.")
@click.option("--grid", is_flag=True, help="Also make a contact sheet of the first 400 pictures, OUTDIR/grid.png.")
@click.option(
    "--skip-existing", is_flag=True, help="Leave out seeds whose picture is there, whole: what is torn is made again."
)
@click.option("--distributed", is_flag=True, help="This is one of several processes, which a cluster started.")
@click.option("--coordinator", metavar="HOST:PORT", help="Of process 0, where there is no such cluster.")
@click.option("--num-processes", type=click.IntRange(1), help="How many processes there are.")
@click.option("--process-id", type=click.IntRange(0), help="Which of them this is.")
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_sample(
    preset, sha256, cache_dir, offline, timeout, net, gnet, guidance, outdir, subdirs, seeds, class_idx, batch, rng,
    precision, nvlabs_rounding, device, vae, vae_batch, latents, grid, skip_existing, distributed, coordinator,
    num_processes, process_id, json_, **settings,
):  # fmt: skip
    """Draw pictures with an EDM2 network: the flags of NVlabs' generate_images.py, and for a seed its picture.

    The network is a --preset's, or --net. Pictures are named by their seed.
    """
    cluster = _cluster(distributed, coordinator, num_processes, process_id)
    if grid and (latents or cluster):
        raise click.UsageError("--grid goes with neither --latents nor several processes")
    if preset is None and net is None:
        raise click.UsageError("give --preset NAME or --net PATH; edm2-convert --list-presets shows the presets")
    _settings(settings, 2.0)  # what is wrong in itself is known before anything is done
    start(device, cluster)  # before an orbax checkpoint is read, which would start JAX as it likes
    location, guide, guidance = _which(preset, net, gnet, guidance)
    if sha256 is not None and guide is not None:
        raise click.UsageError("--sha256 is for one file, and with a guide there are two")
    request = _Request(
        location, guide, _settings(settings, guidance), seeds, class_idx, batch, rng, precision, nvlabs_rounding, vae,
        vae_batch, latents,
    )  # fmt: skip
    from jax.errors import JaxRuntimeError

    from converter.pictures import Folder, contact_sheet

    folder, sheet = Folder(outdir, subdirs=subdirs, suffix=".npy" if latents else ".png"), outdir / "grid.png"
    if grid and sheet.is_dir():
        raise SampleError(f"{sheet}: is a folder and would be lost; choose another --outdir")
    try:
        generator, about, shape = _prepare(request, Fetching(sha256, cache_dir, offline, timeout))
        report = _run(request, generator, folder, about, shape if skip_existing else None)
    except BaseException as error:
        folder.leave()
        if not isinstance(error, JaxRuntimeError):
            raise
        text = " ".join(str(error).split())
        raise SampleError(f"JAX could not go on ({text:.150}); try a smaller --batch or --vae-batch") from None
    if grid:
        contact_sheet([folder.file(seed) for seed in seeds], sheet)
    if json_:
        click.echo(strict_json.dumps({**report, **about, "outdir": str(outdir)}))
        return
    kind, there = "arrays" if latents else "pictures", report["skipped"]
    skipped = f", {there} there already" if there else ""
    say(f"{outdir}: {report['written']} {kind}{skipped}, {report['seconds']:.1f} s")
    if grid:
        say(str(sheet))


def _cluster(distributed, coordinator, num_processes, process_id) -> Cluster | None:
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise click.UsageError("--coordinator, --num-processes and --process-id go together")
    if all(given) and process_id >= num_processes:
        raise click.UsageError(f"--process-id {process_id} is not below --num-processes {num_processes}")
    return Cluster(coordinator, num_processes, process_id) if distributed or all(given) else None


def _which(preset, net, gnet, guidance) -> tuple[Location, Location | None, float]:
    """The network, its guide, and how strong that guides: of the flags, else of the preset, else of the checkpoint."""
    location, found = locate(None, preset) if preset is not None else (_location(net), None)
    if net is not None:
        location = _location(net)
    guide = _location(gnet) if gnet is not None else None
    path = Path(location.text)
    if found is not None and found.guide:
        guide = guide or Location(presets.url(found.guide))
        guidance = found.guidance if guidance is None else guidance
    elif not location.remote and is_checkpoint(path) and (sampler := read_record(path).sampler).guide is not None:
        guide = guide or _beside(path, sampler.guide)
        guidance = sampler.guidance if guidance is None else guidance
    if guidance not in (None, 1) and guide is None:
        raise click.UsageError("--guidance needs a guiding network: --gnet, or a guided preset")
    if guide is not None and guidance is None:
        raise click.UsageError("--gnet needs --guidance, a number such as 1.5")
    return location, guide if guidance != 1 else None, 1.0 if guidance is None else guidance


def _beside(path: Path, name: str) -> Location:
    """The guide that a checkpoint's record names."""
    try:
        return Location(str(path.absolute().with_name(name)))
    except ValueError:
        raise SampleError(
            f"{path}: its record names a guide {name!a:.100}, which is no file name; give --gnet"
        ) from None


def _location(text: str) -> Location:
    location = Location(text)
    if not location.remote and not Path(text).exists():
        raise click.UsageError(f"{text}: there is no such file or folder")
    return location


def _settings(flags: dict[str, Any], guidance: float) -> "Settings":
    """Raises: click.UsageError."""
    from jax_edm2.sampling import Churn, Settings

    values = dict(flags)
    churn = Churn(**{name: values.pop(name) for name in ("S_churn", "S_min", "S_max", "S_noise")})
    interval = values.pop("guidance_interval")
    if interval is not None and guidance == 1:
        raise click.UsageError("--guidance-interval needs --guidance")
    try:
        return Settings(**values, guidance=guidance, churn=churn, **({"interval": interval} if interval else {}))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


# Networks


def _prepare(request: _Request, fetching: Fetching) -> "tuple[Generator, dict[str, Any], tuple[int, ...]]":
    """The generator, what is said in every picture about where it comes from, and the shape of one: [C, H, W]."""
    import jax

    from converter.pictures import MODES
    from jax_edm2.decoding import make_decoder
    from jax_edm2.generation import Generator

    jax.config.update("jax_default_matmul_precision", "highest")  # of float32: embeddings and the VAE are always that
    main = _load(request, fetching, request.net)  # its digest is checked: it goes into every picture
    guide = None if request.guide is None else _load(request, fetching, request.guide)
    channels, size = main.net.config.img_channels, main.net.config.img_resolution
    shape = channels, size, size
    try:
        decoder = None
        if not request.latents:
            vae = find_vae(main.record.encoder, request.vae, fetching)
            if vae is None and channels not in MODES:
                raise SampleError(
                    f"{main.name}: draws {channels} channels and names no VAE: no pictures; use --latents"
                )
            if vae is not None:
                _refuse_not_finite("the VAE", vae[1])
                shape = vae[0].config.out_channels, size * vae[0].scale, size * vae[0].scale
            decoder = make_decoder(main.record.encoder, vae, request.vae_batch)
        generator = Generator(
            main.net, main.variables, guide=(guide.net, guide.variables) if guide else None,
            settings=request.settings, rng=request.rng, class_idx=request.class_idx, decoder=decoder,
        )  # fmt: skip
    except ValueError as error:
        raise SampleError(f"{main.name}: {error}" if not guide else f"{main.name}, {guide.name}: {error}") from None
    about = {
        "network": _about(main),
        "guide": _about(guide) if guide else None,
        "settings": strict_json.clean(dataclasses.asdict(request.settings)),
        "rng": request.rng,
        "precision": jax.numpy.dtype(main.net.dtype).name,
        "nvlabs_rounding": request.nvlabs_rounding,
        "edm2_jax": __version__,
    }
    return generator, about, shape


def _about(network: LoadedNetwork) -> dict[str, Any]:
    code = network.record.code
    return {
        "name": network.name,
        "digest": network.record.digest,
        "code": None if code is None else dataclasses.asdict(code),
    }


def _load(request: _Request, fetching: Fetching, location: Location) -> LoadedNetwork:
    import jax

    from jax_edm2.folding import nvlabs_gains

    def dtype(record):
        if request.precision != "auto":
            return request.precision
        return "float16" if jax.default_backend() == "gpu" and record.config.use_fp16 else "float32"

    loaded = load_network(fetching.bring(location), location.name, dtype)
    if line := embedded.warning(loaded.name, loaded.record.code):
        say(f"edm2-sample: warning: {line}", err=True)
    _refuse_not_finite(loaded.name, loaded.variables)
    if request.nvlabs_rounding:
        if "float16" not in loaded.record.dtype.split("+"):
            raise SampleError(
                f"{loaded.name}: is stored in {loaded.record.dtype}, and --nvlabs-rounding is for float16: convert it "
                "with --dtype keep"
            )
        loaded = dataclasses.replace(loaded, variables=nvlabs_gains(loaded.variables))
    return loaded


def _refuse_not_finite(name: str, variables: Any):
    """A network with NaN or infinite weights draws black pictures. Raises: SampleError."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    counts = {path: not_finite(np.asarray(leaf)) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    if bad := [f"{path} ({count:,})" for path, count in counts.items() if count]:
        shown, more = ", ".join(bad[:5]), f" and {len(bad) - 5:,} more tensors" if len(bad) > 5 else ""
        raise SampleError(f"{name}: has values that are NaN or infinite, in {shown}{more}; it would draw nothing")


# Pictures


class _Writers:
    """Threads that write pictures. done: the seeds of those that are there."""

    def __init__(self, folder: "Folder", about: dict[str, Any]):
        self.folder, self.about, self.done = folder, about, list[int]()
        self._pool = ThreadPoolExecutor(WRITERS)
        self._pending: list[Future] = []

    def write(self, batch: "Batch", arrays):
        """Begin to write a batch, when the one before is written."""
        self.settle()
        for i, seed in enumerate(batch.seeds):
            note = {"Software": f"edm2-jax {__version__}", "seed": str(seed)}
            note |= {} if batch.classes is None else {"class": str(batch.classes[i])}
            self._pending.append(self._pool.submit(self._write, seed, arrays[i], {**note, "edm2": self.about}))

    def _write(self, seed: int, array, note: dict[str, Any]):
        self.folder.write(seed, array, note)
        self.done.append(seed)

    def settle(self):
        """Wait for what is being written. Raises: the first error of it."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def close(self):
        """Wait for what is being written, and write no more."""
        self._pool.shutdown(cancel_futures=True)


def _todo(seeds: Sequence[int], folder: "Folder", shape: tuple[int, ...], about: dict[str, Any]) -> list[int]:
    """The seeds whose picture is not there, or not whole."""
    with ThreadPoolExecutor(WRITERS) as pool:
        found = list(pool.map(lambda seed: folder.differences(seed, shape, about), seeds))
    if differing := [differences for differences in found if differences]:
        names = ", ".join(sorted(set().union(*differing)))
        say(
            f"edm2-sample: warning: {len(differing)} pictures that are left were made otherwise ({names}): remove "
            "them, or choose another --outdir", err=True,
        )  # fmt: skip
    return [seed for seed, differences in zip(seeds, found, strict=True) if differences is None]


def _run(
    request: _Request, generator: "Generator", folder: "Folder", about: dict[str, Any], skip: tuple[int, ...] | None
) -> dict[str, Any]:
    """skip: the shape of the pictures that are left where they are; None for none."""
    import jax
    import numpy as np
    from tqdm import tqdm

    from jax_edm2.generation import share

    mine = share(request.seeds, jax.process_index(), jax.process_count())
    given = {} if request.class_idx is None else {"class": str(request.class_idx)}
    todo = mine if skip is None else _todo(mine, folder, skip, {**about, **given})
    precise = "; try --precision=float32" if about["precision"] != "float32" else ""
    began = time.perf_counter()
    silent = sys.stderr is None or not sys.stderr.isatty() or jax.process_index() > 0
    writers = _Writers(folder, about)
    try:
        with tqdm(total=len(todo), unit="image", file=sys.stderr, disable=silent, leave=False) as bar:
            for batch in generator(todo, request.batch):
                latents = np.asarray(batch.latents)
                if lost := [seed for seed, latent in zip(batch.seeds, latents, strict=False) if not_finite(latent)]:
                    raise SampleError(f"the network gives values that are NaN or infinite for seed {lost[0]}{precise}")
                writers.write(batch, latents if request.latents else np.asarray(batch.pictures))
                bar.update(len(writers.done) - bar.n)
            writers.settle()
    except BaseException:
        writers.close()
        with contextlib.suppress(OSError):
            say(f"{len(writers.done)} of {len(todo)} are in {folder.path}", err=True)
        raise
    writers.close()
    seconds = time.perf_counter() - began
    return {"written": len(writers.done), "skipped": len(mine) - len(todo), "seconds": seconds}


def main():
    run(edm2_sample)


if __name__ == "__main__":
    main()
