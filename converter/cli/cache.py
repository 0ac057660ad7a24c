"""edm2-convert cache: what has been downloaded, is it still what it was, and away with it."""

import click

from jax_edm2.strict_json import dumps

from ..downloads import cache_contents
from ..downloads.cache import cache_in
from .options import SETTINGS
from .paths import LocalPath
from .run import say

BROKEN = 2
_folder = click.option(
    "--cache-dir",
    type=LocalPath(file_okay=False),
    help="The cache.  [default: $DNNLIB_CACHE_DIR/downloads, else the user's cache folder]",
)


@click.group(context_settings=SETTINGS)
def cache():
    """What edm2-convert has downloaded, and what NVlabs' own tool left in the same place."""


@cache.command(name="list")
@_folder
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
def list_(cache_dir, json_):
    """Print the files in the cache: bytes, sha256 as recorded, name."""
    found = cache_contents.contents(cache_in(cache_dir))
    if json_:
        click.echo(dumps(found.to_json()))
        return
    for file in found.files:
        known = "DAMAGED" if file.damage else file.sha256 or "not used yet"
        say(f"{file.bytes:>15,}  {known[:16]:16}  {file.name}")
    for part in found.parts:
        say(f"{part.bytes:>15,}  {'of ' + format(part.total or 0, ','):16}  {part.name} (in part)")
    say(f"{found.folder}: {len(found.files)} files, {found.bytes / 1e6:,.1f} MB")


@cache.command()
@_folder
def verify(cache_dir):
    """Compare every file's sha256 with what was recorded of it; exit code 2 if one was altered, or its record was."""
    altered = 0
    for checked in cache_contents.check(cache_in(cache_dir)):
        entry = checked.entry
        if checked.sha256 is None:
            altered += 1
            say(f"{'DAMAGED' if entry.damage else 'ALTERED':10}{checked.error}")
        else:
            say(f"{'ok' if entry.record else 'recorded':10}{checked.sha256[:16]}  {entry.name}")
    return BROKEN if altered else 0


@cache.command()
@_folder
@click.argument("names", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Everything that edm2-convert fetched or used.")
def clear(cache_dir, names, all_):
    """Remove files by NAME (as `list` shows them), or --all; parts of downloads that did not end go with them."""
    if bool(names) == all_:
        raise click.UsageError("give the NAME of a file, as `edm2-convert cache list` shows it, or --all")
    found = cache_in(cache_dir)
    cleared = cache_contents.clear(found, None if all_ else names)
    say(f"{found.folder}: {cleared.files} files and {cleared.parts} parts removed, {cleared.bytes / 1e6:,.1f} MB")
