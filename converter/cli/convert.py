"""edm2-convert: an NVlabs EDM2 snapshot becomes a JAX checkpoint."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from jax_edm2 import __version__
from jax_edm2.strict_json import dumps

from .. import presets
from ..conversion import ConversionRequest, Converted, StoredTensor, fetch_and_convert
from ..convert import DTYPES, FORMATS
from ..progress import Advance
from ..publish import convert_and_publish
from ..sources import Fetching
from .cache import cache
from .files import check, inspect
from .options import SETTINGS, source_options, state_options
from .paths import BroughtPath, StoredPath
from .run import HINT, NOTE, run, say
from .subcommands import SourceOrCommand

PROGRESS_FROM = 64 * 2**20  # bytes; fewer are done before a bar is drawn

EPILOG = """\b
Examples:
  edm2-convert --preset edm2-img512-s
  edm2-convert --preset edm2-img512-s-guid-dino -o s.safetensors
  edm2-convert edm2-img512-s-2147483-0.130.pkl
  edm2-convert golden/digits.pkl golden/digits-guide.pkl
  edm2-convert golden/digits.pkl -o digits --format orbax --dtype float32
  edm2-convert golden/digits.pkl --dry-run
  edm2-convert digits.safetensors -o back.pkl
  edm2-convert training-state-0134217.pt --weights ema-0.100
  edm2-convert golden/digits.pkl -o s3://bucket/digits.safetensors
  edm2-convert golden/digits.pkl --push-to hf://me/digits --accept-license

\b
What a file is, and whether it is sound (snapshots, checkpoints, truths):
  edm2-convert inspect|check FILE

\b
Downloads are kept:
  edm2-convert cache list|verify|clear

Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted.
"""


@click.group(
    name="edm2-convert", cls=SourceOrCommand, epilog=EPILOG, context_settings=SETTINGS,
    invoke_without_command=True,
)  # fmt: skip
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@source_options
@click.option(
    "-o",
    "--output",
    type=StoredPath(),
    help="Checkpoint to write, or a folder for it, or its URL in a store (s3://bucket/name).  [default: SOURCE's name, "
    "here]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(FORMATS)),
    help="A safetensors file, an orbax folder (needs orbax), a snapshot for NVlabs' tools (pkl), or its training state "
    "(pt).  [default: what --output ends in; else safetensors, or orbax for all of a training state]",
)
@click.option(
    "--like",
    metavar="PKL",
    type=BroughtPath(network=True),
    help="Write a copy of this snapshot with SOURCE's values: same values, same bytes.",
)
@state_options
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="keep",
    show_default=True,
    help="Of the stored tensors; 'keep' copies them bit for bit.",
)
@click.option(
    "--push-to",
    metavar="hf://OWNER/REPO",
    help="Put the checkpoint, its record and a model card into this repository of the Hugging Face hub.",
)
@click.option(
    "--accept-license",
    is_flag=True,
    help="For --push-to: I publish these weights under CC BY-NC-SA 4.0, as NVIDIA's are licensed.",
)
@click.option(
    "--verified",
    type=BroughtPath(),
    metavar="REPORT.JSON",
    help="For --push-to: what edm2-verify --report has found, for the model card.",
)
@click.option("--list-presets", is_flag=True, help="Print all presets and published networks.")
@click.option("--dry-run", is_flag=True, help="Print the tree, sizes and metadata; write no checkpoint.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_convert(
    sources, output, format_, like, weights, config_from, dtype, preset, sha256, cache_dir, offline, timeout,
    push_to, accept_license, verified, list_presets, dry_run, force, json_,
):  # fmt: skip
    """Turn NVlabs EDM2 snapshots (SOURCE: .pkl files or URLs; or a --preset) into checkpoints for JAX, and back.

    SOURCE may also be a training state (.pt, or a folder of this command's), or a checkpoint. Nothing in it is
    executed. Values that are NaN or infinite are kept, with a warning. A guided preset gives two checkpoints, its
    network's and its guide's. Load a checkpoint with jax_edm2.load(OUTPUT).
    """
    if list_presets:
        _list_presets(json_)
        return
    fetching = Fetching(sha256, cache_dir, offline, timeout)
    if len(sources) > 1 and sha256 is not None:
        raise click.UsageError("--sha256 is for one file")
    if len(sources) > 1 and output is not None and not (str(output).endswith("/") or output.is_dir()):
        raise click.UsageError(f"{output} is no folder: {len(sources)} checkpoints do not go into one")
    if push_to is None and (accept_license or verified is not None):
        raise click.UsageError("--accept-license and --verified are for --push-to")
    if push_to is not None and len(sources) > 1:
        raise click.UsageError("--push-to is for one network, and perhaps its guide")
    found = []
    for source in sources or (None,):
        request = ConversionRequest(
            source, preset, output, format=format_, dtype=dtype, weights=weights, config_from=config_from, like=like,
            dry_run=dry_run, force=force, fetching=fetching,
        )  # fmt: skip
        commit = None
        if push_to is None:
            conversion = fetch_and_convert(request, warn=_warn, progress=_progress_bar)
        else:
            conversion, commit = convert_and_publish(
                request, push_to, accept_license=accept_license, verified=verified, warn=_warn, progress=_progress_bar
            )
        found.append(conversion.to_json() | ({} if commit is None else {"commit": commit}))
        if json_:
            continue
        if conversion.guide is not None:
            _show(conversion.guide)
        _show(conversion.network)
        if commit is not None:
            say(f"{push_to}: committed as {commit}")
        if conversion.network.output is not None and conversion.network.metadata.get("training") is None:
            chosen = f"--weights {weights} " if weights else ""
            _hint(f"{chosen}{source}" if source else f"--preset {preset}", conversion.network.output)
    if json_:
        click.echo(dumps(found[0] if len(found) == 1 else {"conversions": found}))


for command in (cache, check, inspect):
    edm2_convert.add_command(command)


def _hint(source: str, output: Path | str):
    """What comes next, for a person."""
    if sys.stderr is not None and sys.stderr.isatty():
        say(f"now: edm2-verify {source} --checkpoint {output}", err=True, style=HINT)
        say(f"     edm2-sample --net {output} --outdir out --grid", err=True, style=HINT)


def _warn(line: str):
    say(f"edm2-convert: warning: {line}", err=True, style=NOTE)


@contextlib.contextmanager
def _progress_bar(name: str, total: int) -> Iterator[Advance]:
    """A bar on standard error, where there is much to do; else one that prints nothing."""
    if total < PROGRESS_FROM:
        yield lambda count: None
        return
    from ..bars import Bar

    with Bar(desc=name, total=total, unit="B", unit_scale=True) as bar:
        yield bar.update


def _show(report: Converted):
    record = report.metadata
    what = f"{len(report.tensors)} tensors, {report.parameters / 1e6:.1f} M parameters, {report.bytes / 1e6:.1f} MB"
    if report.output is None:
        what += f", {report.gflops:.3g} Gflops for an image"
    if report.output is None:
        for line in _tree_lines(report.tensors):
            say(line)
        for line in json.dumps(record, indent=2, sort_keys=True).splitlines():
            say(line)
        say(f"{what}; nothing written")
    else:
        digest = record["digest"] if report.written else "there already"
        say(f"{report.output}: {what}, {record['dtype']}, {digest}")


def _tree_lines(tensors: dict[str, StoredTensor]) -> Iterator[str]:
    width = max(map(len, tensors))
    for path, tensor in tensors.items():
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        yield f"{path:<{width}}  {shape:>16}  {tensor.dtype}  {tensor.bytes:>13,}"


def _list_presets(json_: bool):
    catalog = presets.catalog()
    if json_:
        click.echo(dumps(catalog))
        return
    say(f"{'preset':34}{'MB':>6}{'guidance':>9}{'FID':>6}{'FD-DINOv2':>10}  network, and its guide")
    for row in catalog["presets"]:
        name = row["name"] if row["alias"] is None else f"{row['alias']}[-fid]"
        guidance = f"{row['guidance']:g}" if row["guide"] else "-"
        figures = [f"{row[key]:.2f}" if row[key] else "-" for key in ("fid", "fd_dinov2")]
        line = f"{name:34}{row['bytes'] / 1e6:6,.0f}{guidance:>9}{figures[0]:>6}{figures[1]:>10}  {row['net']}"
        say(line)
        if row["guide"]:
            say(f"{'':67}{row['guide']}")
    say()
    say(f"Every published file can be named as well, raw snapshots too: --preset {presets.NETWORKS[0]}")
    say(f"Files come from {presets.ROOT}")


def main():
    run(edm2_convert)


if __name__ == "__main__":
    main()
