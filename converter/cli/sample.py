"""edm2-sample: the pictures of NVlabs' generate_images.py, seed by seed, from a checkpoint or a snapshot."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from jax_edm2 import __version__, strict_json
from jax_edm2.settings import SAMPLERS, Churn, Settings

from ..devices import start
from ..progress import Advance
from ..sample import sample
from ..sample_request import GRID_ALONE, SampleRequest
from ..sources import Fetching
from .cluster import cluster_of, cluster_options
from .options import SETTINGS, device_option, source_options
from .run import NOTE, run, say
from .seeds import Seeds

EPILOG = """\b
Examples:
  edm2-sample --preset=edm2-img512-s-guid-dino --outdir=out
  edm2-sample --preset=edm2-img64-s-fid --outdir=out --subdirs \\
      --seeds=0-49999 --batch=128
  edm2-sample --net=golden/digits.pkl --outdir=out --seeds=0-99 --grid
  edm2-sample --net=digits.safetensors --outdir=out --class=7 \\
      --sampler=dpmpp-2m --steps=16
  edm2-sample --net=golden/digits.pkl --gnet=golden/digits-guide.pkl \\
      --guidance=1.5 --outdir=out
\b
Two processes, each with all of its devices (on Slurm and TPU pods,
--distributed alone):
  edm2-sample --net=digits.safetensors --outdir=out --seeds=0-999 \\
      --coordinator=host0:1234 --num-processes=2 --process-id=0

Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted, 143 terminated;
pictures that are finished are kept, and --skip-existing goes on from there.
"""

POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)


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


def _recorded(name: str) -> str:
    """What is said of an option whose default is in a checkpoint's record."""
    return f"[default: the checkpoint's, else {getattr(Settings, name):g}]"


def _churn_option(name: str, kind: click.ParamType, what: str):
    default = f"{getattr(Churn, name):g}"
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, default=default, show_default=True, help=what)


@click.command(name="edm2-sample", epilog=EPILOG, context_settings=SETTINGS)
@source_options
@click.option("--net", metavar="PATH|URL", help="Network: a converted checkpoint, or a snapshot (.pkl) or its URL.")
@click.option("--gnet", metavar="PATH|URL", help="Guiding network.  [default: the preset's, or the checkpoint's]")
@click.option("--guidance", type=float, help="Its strength; 1 is no guidance.  [default: likewise]")
@click.option("--guidance-interval", type=Interval(), help="Guide at these noise levels only: above LO, up to HI.")
@click.option(
    "--unconditional-guide", "unconditional", is_flag=True,
    help="Ask the guide without labels; without --gnet, the network guides itself (classifier-free guidance).",
)  # fmt: skip
@click.option("--outdir", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for pictures.")
@click.option("--subdirs", is_flag=True, help="Make a folder for every 1000 seeds.")
@click.option("--seeds", type=Seeds(10_000_000), default="16-19", show_default=True, help="A picture each: 1,2,5-10.")
@click.option("--class", "class_idx", type=click.IntRange(min=0), help="Class label.  [default: random]")
@click.option(
    "--batch", type=click.IntRange(1, 65536), default=32, show_default=True, help="Most pictures at once on a device."
)
@click.option("--steps", "num_steps", type=click.IntRange(1, 10_000), help=f"Sampling steps.  {_recorded('num_steps')}")
@click.option("--sigma-min", type=POSITIVE, help=f"Lowest noise level.  {_recorded('sigma_min')}")
@click.option("--sigma-max", type=POSITIVE, help=f"Highest noise level.  {_recorded('sigma_max')}")
@click.option("--rho", type=POSITIVE, help=f"Exponent of the noise levels.  {_recorded('rho')}")
@_churn_option("S_churn", NOT_NEGATIVE, "Stochasticity.")
@_churn_option("S_min", NOT_NEGATIVE, "Its lowest level.")
@_churn_option("S_max", NOT_NEGATIVE, "Its highest level.")
@_churn_option("S_noise", click.FLOAT, "Inflation of its noise.")
@click.option(
    "--sampler", type=click.Choice(SAMPLERS), default=Settings.sampler, show_default=True,
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
@device_option("All of that kind are used.")
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
    "--skip-existing", is_flag=True,
    help="Leave out seeds whose picture is there, whole: what is torn is made again, what was made otherwise refused.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="With --skip-existing: make again what was made otherwise.")
@cluster_options
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_sample(
    preset, sha256, cache_dir, offline, timeout, net, gnet, guidance, guidance_interval, unconditional, outdir, subdirs,
    seeds, class_idx, batch, num_steps, sigma_min, sigma_max, rho, S_churn, S_min, S_max, S_noise, sampler, rng,
    precision, nvlabs_rounding, device, vae, vae_batch, latents, grid, skip_existing, force, distributed, coordinator,
    num_processes, process_id, json_,
):  # fmt: skip
    """Draw pictures with an EDM2 network: the flags of NVlabs' generate_images.py, and for a seed its picture.

    The network is a --preset's, or --net. Pictures are named by their seed.
    """
    cluster = cluster_of(distributed, coordinator, num_processes, process_id)
    if grid and cluster:
        raise click.UsageError(GRID_ALONE)

    request = SampleRequest(
        outdir, preset=preset, net=net, gnet=gnet, guidance=guidance, interval=guidance_interval,
        unconditional=unconditional, seeds=seeds, class_idx=class_idx, batch=batch, sampler=sampler,
        num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho,
        churn=Churn(S_churn, S_min, S_max, S_noise), rng=rng, precision=precision, nvlabs_rounding=nvlabs_rounding,
        vae=vae, vae_batch=vae_batch, latents=latents, subdirs=subdirs, grid=grid, skip_existing=skip_existing,
        force=force, fetching=Fetching(sha256, cache_dir, offline, timeout),
    )  # fmt: skip
    start(device, cluster)  # before an orbax checkpoint is read, which would start JAX as it likes
    report = sample(request, warn=_warn, progress=_count, steps=_bar)
    if json_:
        click.echo(strict_json.dumps(report.to_json()))
        return
    kind, there = "arrays" if latents else "pictures", report.skipped
    skipped = f", {there} there already" if there else ""
    say(f"{outdir}: {report.written} {kind}{skipped}, {report.seconds:.1f} s")
    if report.sheet is not None:
        say(str(report.sheet))


def _warn(line: str):
    say(f"edm2-sample: warning: {line}", err=True, style=NOTE)


@contextlib.contextmanager
def _count(folder: str, total: int) -> Iterator[Advance]:
    """Whoever is interrupted learns how many pictures there are."""
    done = 0

    def advance(count: int):
        nonlocal done
        done += count

    try:
        yield advance
    except BaseException:
        with contextlib.suppress(OSError):
            say(f"{done} of {total} are in {folder}", err=True)
        raise


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Advance]:
    """Of the network's evaluations; the first of them takes as long as compiling does."""
    import jax

    from ..bars import Bar

    with Bar(desc=name, total=total, unit="evaluations", silent=jax.process_index() > 0) as bar:
        yield bar.update


def main():
    run(edm2_sample)


if __name__ == "__main__":
    main()
