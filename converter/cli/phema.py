"""edm2-phema: averages of other lengths, made of a training's snapshots."""

import contextlib
import os
from collections.abc import Iterator

import click

from jax_edm2 import __version__
from jax_edm2.strict_json import dumps

from ..phema import SUFFIXES, Made, PhemaRequest, reconstruct
from ..progress import Advance
from ..sources import Fetching
from .options import SETTINGS, download_options
from .paths import StoredPath
from .run import NOTE, run, say
from .stds import Stds

EPILOG = """\b
Examples:
  edm2-phema --indir=raw-snapshots/edm2-img512-xs --outdir=out \\
      --outstd=0.150
  edm2-phema --indir=raw-snapshots/edm2-img512-xs --outdir=out \\
      --outstd=0.010,0.015,...,0.250

\b
Of a published run, whose snapshots are fetched (up to 159 GB):
  edm2-phema --indir=edm2-img512-xs --outkimg=134217 --outdir=out \\
      --outstd=0.150

Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted.
"""


@click.command(name="edm2-phema", epilog=EPILOG, context_settings=SETTINGS)
@click.option(
    "--indir",
    type=StoredPath(),
    required=True,
    help="Folder of snapshots, -KIMG-STD.pkl, also a store's; or a published run's name.",
)
@click.option("--inprefix", metavar="NAME", help="Only this run's: what stands before -KIMG-STD.pkl.")
@click.option("--instd", type=Stds(), help="Only those with these relative standard deviations.")
@click.option("--outdir", type=StoredPath(file_okay=False), required=True, help="Folder for averages, also a store's.")
@click.option("--outprefix", metavar="NAME", default="phema", show_default=True, help="How their names begin.")
@click.option("--outstd", type=Stds(), required=True, help="Their relative standard deviations: 0.010,0.015,...,0.250.")
@click.option("--outkimg", type=click.IntRange(1), help="Their time, one of the snapshots'.  [default: the last]")
@click.option("--skip", is_flag=True, help="Leave averages that are there already.")
@click.option("--force", is_flag=True, help="Replace averages that are there already.")
@click.option("--batch", type=click.IntRange(1), hidden=True, help="Of no use here: all are made at once.")
@click.option(
    "--format", "format_", type=click.Choice(list(SUFFIXES)), default="safetensors", show_default=True,
    help="pkl is a snapshot for NVlabs' tools.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["keep", "float16", "float32"]), default="keep", show_default=True,
    help="Of the averages; keep is the snapshots'.",
)  # fmt: skip
@click.option(
    "--nvlabs-rounding",
    is_flag=True,
    help="Round as reconstruct_phema.py does: the same bits, less exact.",
)
@download_options
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_phema(
    indir, inprefix, instd, outdir, outprefix, outstd, outkimg, skip, force, batch, format_, dtype, nvlabs_rounding,
    cache_dir, offline, timeout, json_,
):  # fmt: skip
    """Make EMA profiles of any length of the snapshots that a training left (post-hoc EMA).

    The flags are those of NVlabs' reconstruct_phema.py. The snapshots are read once, whatever the number of profiles;
    nothing in them is executed. Averages are checkpoints for JAX, whose records have the snapshots' digests and the
    coefficients. Killed or interrupted, the same command goes on from where it was.
    """
    request = PhemaRequest(
        indir, outdir, outstd, outkimg=outkimg, outprefix=outprefix, inprefix=inprefix, instd=instd, skip=skip,
        force=force, dtype=dtype, nvlabs_rounding=nvlabs_rounding, format=format_,
        fetching=Fetching(None, cache_dir, offline, timeout),
    )  # fmt: skip
    report = reconstruct(request, warn=_warn, progress=_bar)
    if json_:
        click.echo(dumps(report.to_json()))
        return
    for made in report.made:
        _show(made)
    if report.skipped:
        say(f"{len(report.skipped)} there already")


def _show(made: Made):
    average = made.record.average
    assert average is not None
    say(
        f"{made.path}: of {len(average.names)} snapshots, sum of |c| {made.magnitude:.3g}, condition number "
        f"{average.condition:.2g}, the snapshots' rounding at most {made.error:.1g} of the largest weight, "
        f"{made.record.dtype}, {made.record.digest}"
    )


def _warn(line: str):
    say(f"edm2-phema: warning: {line}", err=True, style=NOTE)


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Advance]:
    from ..bars import Bar

    with Bar(desc=name, total=total, unit="B", unit_scale=True, delay=0.5) as bar:
        yield bar.update


def main():
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported: our own threads are enough
    run(edm2_phema)


if __name__ == "__main__":
    main()
