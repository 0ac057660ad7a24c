"""edm2-sample: the pictures of NVlabs' generate_images.py, seed by seed, from a checkpoint or a snapshot."""

import contextlib
from collections.abc import Iterator

import click

from jax_edm2 import __version__, strict_json

from ..devices import start
from ..progress import Advance
from ..sample import GRID_ALONE, SampleRequest, sample
from .cluster import cluster_of, cluster_options
from .drawing import drawing_options, drawn_by
from .options import SETTINGS, device_option
from .paths import StoredPath
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


@click.command(name="edm2-sample", epilog=EPILOG, context_settings=SETTINGS)
@click.option(
    "--outdir", type=StoredPath(file_okay=False), required=True, help="Folder for pictures, also s3:// or gs://."
)
@click.option("--subdirs", is_flag=True, help="Make a folder for every 1000 seeds.")
@click.option("--seeds", type=Seeds(10_000_000), default="16-19", show_default=True, help="A picture each: 1,2,5-10.")
@drawing_options
@device_option("All of that kind are used.")
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
    outdir, subdirs, seeds, device, latents, grid, skip_existing, force, distributed, coordinator, num_processes,
    process_id, json_, **options,
):  # fmt: skip
    """Draw pictures with an EDM2 network: the flags of NVlabs' generate_images.py, and for a seed its picture.

    The network is a --preset's, or --net. Pictures are named by their seed.
    """
    cluster = cluster_of(distributed, coordinator, num_processes, process_id)
    if grid and cluster:
        raise click.UsageError(GRID_ALONE)

    request = SampleRequest(
        outdir, seeds, latents, subdirs, grid, skip_existing, force, **drawn_by(options),
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
