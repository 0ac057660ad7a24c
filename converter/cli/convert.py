"""edm2-convert: an NVlabs EDM2 snapshot becomes a JAX checkpoint."""

import contextlib
import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from converter import embedded, presets
from converter.cache import sha256 as file_sha256
from converter.cli.cache import edm2_convert_cache
from converter.cli.options import source_options
from converter.cli.run import run, say
from converter.convert import DTYPES, checkpoint_tensors, convert, describe, tree_lines
from converter.snapshot import Snapshot, read_snapshot
from converter.sources import Fetching, Location, locate
from jax_edm2 import __version__
from jax_edm2.checkpoint import ORBAX_MARK, WRITERS, CheckpointError, Tensor, read_record, stored_dtype
from jax_edm2.messages import listing
from jax_edm2.record import CHECK, Record, Sampler
from jax_edm2.strict_json import dumps

NAMED = 5  # tensors, in a warning
PROGRESS_FROM = 64 * 2**20  # bytes; smaller files are done before a bar is drawn
SUFFIXES = {"safetensors": ".safetensors", "orbax": ".orbax"}

EPILOG = """\b
Examples:
  edm2-convert --preset edm2-img512-s
  edm2-convert --preset edm2-img512-s-guid-dino -o s.safetensors
  edm2-convert edm2-img512-s-2147483-0.130.pkl
  edm2-convert golden/digits.pkl -o digits --format orbax --dtype float32
  edm2-convert golden/digits.pkl --dry-run

\b
Downloads are kept:
  edm2-convert cache list|verify|clear

\b
Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted.
"""


@click.command(name="edm2-convert", epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("source", required=False)
@source_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Checkpoint to write, or a folder for it.  [default: SOURCE's name, here]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(WRITERS)),
    default="safetensors",
    show_default=True,
    help="One file, or an orbax folder (needs orbax, and memory for all tensors).",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="keep",
    show_default=True,
    help="Of the stored tensors; 'keep' copies them bit for bit.",
)
@click.option("--list-presets", is_flag=True, help="Print all presets and published networks.")
@click.option("--dry-run", is_flag=True, help="Print the tree, sizes and metadata; write no checkpoint.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_convert(
    source, output, format_, dtype, preset, sha256, cache_dir, offline, timeout, list_presets, dry_run, force, json_
):
    """Turn an NVlabs EDM2 snapshot (SOURCE, a .pkl file or its URL, or a --preset) into a checkpoint for JAX.

    Nothing in the snapshot is executed. Values that are NaN or infinite are kept, with a warning. A guided preset gives
    two checkpoints, its network's and its guide's. Load the result with jax_edm2.load(OUTPUT).
    """
    if list_presets:
        _list_presets(json_)
        return
    location, found = locate(source, preset)
    guide = Location(presets.url(found.guide)) if found is not None and found.guide else None
    if guide is not None and sha256 is not None:
        raise click.UsageError("--sha256 is for one file, and this preset has two; the cache remembers both hashes")
    output = _output(output, location, format_)
    if output.exists() and not force and not dry_run:  # before anything is fetched
        raise FileExistsError(f"{output} exists")
    work = _Work(Fetching(sha256, cache_dir, offline, timeout), format_, dtype, dry_run, force)
    if guide is None or found is None:
        reports = [work.convert(location, output)]
    else:  # the guide first, so that whoever finds the main checkpoint finds its guide
        beside = _output(output.parent, guide, format_)
        sampler = Sampler(guidance=found.guidance, guide=beside.name)
        reports = [work.convert(guide, beside, shared=True), work.convert(location, output, sampler)]
    if json_:
        click.echo(dumps({**reports[-1], "guide": reports[0] if guide else None}))
        return
    for report in reports:
        _show(report)


def _output(output: Path | None, location: Location, format_: str) -> Path:
    """Where a snapshot's checkpoint goes: the path given, or its own name in the folder given, or here."""
    name = location.stem + SUFFIXES[format_]
    if output is None:
        return Path(name)
    return output / name if output.is_dir() and not (output / ORBAX_MARK).exists() else output


@dataclass(frozen=True)
class _Work:
    fetching: Fetching
    format: str
    dtype: str
    dry_run: bool
    force: bool

    def convert(
        self, location: Location, output: Path, sampler: Sampler | None = None, shared: bool = False
    ) -> dict[str, Any]:
        """Convert one snapshot and report. shared: keep an output that exists, if it is what would be written."""
        with read_snapshot(self.fetching.bring(location)) as snapshot:
            tensors = checkpoint_tensors(snapshot, self.dtype)
            existing = self._existing(snapshot, output, tensors) if shared else None
            not_finite: dict[str, int] = {}
            if self.dry_run or existing:
                record = existing or describe(snapshot, location.name, sampler)
            else:
                with progress_bar(snapshot) as progress:
                    record = convert(
                        snapshot, output, format=self.format, dtype=self.dtype, overwrite=self.force,
                        name=location.name, sampler=sampler, progress=progress.update, not_finite=not_finite,
                    )  # fmt: skip
            if not_finite:
                say(f"edm2-convert: warning: {location.name}: {_not_finite(not_finite)}", err=True)
            if line := embedded.warning(location.name, embedded.identify(snapshot.source)):
                say(f"edm2-convert: warning: {line}", err=True)
        return {
            "output": None if self.dry_run else str(output),
            "written": not (self.dry_run or existing),
            "format": self.format,
            "parameters": sum(math.prod(t.shape) for path, t in tensors.items() if path.startswith("params/")),
            "tensors": {path: {"shape": t.shape, "dtype": t.dtype, "bytes": t.nbytes} for path, t in tensors.items()},
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "metadata": metadata(record, tensors),
        }

    def _existing(self, snapshot: Snapshot, output: Path, tensors: dict[str, Tensor]) -> Record | None:
        """The record of a checkpoint at `output` that was made from this very snapshot, in this dtype."""
        try:
            record = read_record(output)
        except CheckpointError:
            return None
        same = record.source is not None and record.source.sha256 == file_sha256(snapshot.path)
        return record if same and record.dtype == stored_dtype(tensors) else None


def _not_finite(counts: dict[str, int]) -> str:
    names = listing([f"{name} ({count:,})" for name, count in sorted(counts.items())][:NAMED])
    more = f"; and in {len(counts) - NAMED:,} more tensors" if len(counts) > NAMED else ""
    total = sum(counts.values())
    return (
        f"{total:,} values are NaN or infinite, and are kept so: in {names}{more}; edm2-sample refuses such a network"
    )


def _show(report: dict[str, Any]):
    tensors, record = report["tensors"], report["metadata"]
    what = f"{len(tensors)} tensors, {report['parameters'] / 1e6:.1f} M parameters, {report['bytes'] / 1e6:.1f} MB"
    if report["output"] is None:
        for line in tree_lines(tensors):
            say(line)
        for line in json.dumps(record, indent=2, sort_keys=True).splitlines():
            say(line)
        say(f"{what}; nothing written")
    else:
        digest = record["digest"] if report["written"] else "there already"
        say(f"{report['output']}: {what}, {record['dtype']}, {digest}")


def _list_presets(json_: bool):
    aliases = {preset.name: alias for alias, preset in presets.ALIASES.items()}
    rows = [
        {
            **dataclasses.asdict(preset),
            "alias": aliases.get(preset.name),
            "bytes": sum(presets.tensor_bytes(name) for name in (preset.net, preset.guide) if name),
            "urls": [presets.url(name) for name in (preset.net, preset.guide) if name],
        }
        for preset in presets.PRESETS
    ]
    if json_:
        click.echo(dumps({"presets": rows, "networks": {name: presets.url(name) for name in presets.NETWORKS}}))
        return
    say(f"{'preset':34}{'MB':>6}{'guidance':>9}{'FID':>6}{'FD-DINOv2':>10}  network, and its guide")
    for row in rows:
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


def metadata(record: Record, tensors: dict[str, Tensor]) -> dict:
    """The record as JSON; hashes, which a dry run does not compute, are null."""
    fields = json.loads(record.to_json())
    if not record.digest:
        del fields[CHECK]
        fields |= {"dtype": stored_dtype(tensors), "digest": None, "source": {**fields["source"], "sha256": None}}
    return fields


@contextlib.contextmanager
def progress_bar(snapshot: Snapshot):
    """A tqdm bar on standard error where that is a terminal and the file is large; else something that is silent."""
    if snapshot.file.size < PROGRESS_FROM or not sys.stderr.isatty():
        yield _Silent()
        return
    from tqdm import tqdm

    total = sum(record.data.length for record in snapshot.tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=snapshot.path.name, file=sys.stderr, leave=False) as bar:
        yield bar


class _Silent:
    def update(self, count: int):
        pass


def main():
    run(edm2_convert_cache if sys.argv[1:2] == ["cache"] else edm2_convert)


if __name__ == "__main__":
    main()
