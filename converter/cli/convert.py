"""edm2-convert: an NVlabs EDM2 snapshot becomes a JAX checkpoint."""

import contextlib
import json
import math
import sys
from pathlib import Path

import click

from converter.cli.run import run
from converter.convert import DTYPES, checkpoint_tensors, convert, describe, tree_lines
from converter.snapshot import Snapshot, read_snapshot
from jax_edm2 import __version__
from jax_edm2.checkpoint import WRITERS, Tensor, stored_dtype
from jax_edm2.record import Record

PROGRESS_FROM = 64 * 2**20  # bytes; smaller files are done before a bar is drawn

EPILOG = """\b
Examples:
  edm2-convert edm2-img512-s-2147483-0.130.pkl
  edm2-convert golden/digits.pkl -o digits.safetensors
  edm2-convert golden/digits.pkl -o digits --format orbax --dtype float32
  edm2-convert golden/digits.pkl --dry-run

\b
Exit codes: 0 done, 2 wrong usage or an input that is missing, broken or refused, 130 interrupted.
"""


@click.command(name="edm2-convert", epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Checkpoint to write.  [default: SOURCE's name, here]"
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
@click.option("--dry-run", is_flag=True, help="Print the tree, sizes and metadata; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
@click.version_option(__version__)
def edm2_convert(source, output, format_, dtype, dry_run, force, json_):
    """Turn an NVlabs EDM2 snapshot (SOURCE, a .pkl file) into a checkpoint for JAX.

    Nothing in the snapshot is executed. Load the result with jax_edm2.load(OUTPUT).
    """
    if output is None:
        output = Path(source.stem + {"safetensors": ".safetensors", "orbax": ".orbax"}[format_])
    with read_snapshot(source) as snapshot:
        tensors = checkpoint_tensors(snapshot, dtype)
        if dry_run:
            record = describe(snapshot)
        else:
            with progress_bar(snapshot) as progress:
                record = convert(
                    snapshot, output, format=format_, dtype=dtype, overwrite=force, progress=progress.update
                )
        report = {
            "output": None if dry_run else str(output),
            "format": format_,
            "parameters": sum(math.prod(t.shape) for path, t in tensors.items() if path.startswith("params/")),
            "tensors": {path: {"shape": t.shape, "dtype": t.dtype, "bytes": t.nbytes} for path, t in tensors.items()},
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
            "metadata": metadata(record, tensors),
        }
    if json_:
        click.echo(json.dumps(report, sort_keys=True))
        return
    if dry_run:
        for line in tree_lines(tensors):
            click.echo(line)
        click.echo(json.dumps(report["metadata"], indent=2, sort_keys=True))
    what = f"{len(tensors)} tensors, {report['parameters'] / 1e6:.1f} M parameters, {report['bytes'] / 1e6:.1f} MB"
    click.echo(f"{what}; nothing written" if dry_run else f"{output}: {what}, {record.dtype}, {record.digest}")


def metadata(record: Record, tensors: dict[str, Tensor]) -> dict:
    """The record as JSON; hashes, which a dry run does not compute, are null."""
    fields = json.loads(record.to_json())
    if not record.digest:
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
    run(edm2_convert)


if __name__ == "__main__":
    main()
