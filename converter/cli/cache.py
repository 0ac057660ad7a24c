"""edm2-convert cache: what has been downloaded, is it still what it was, and away with it."""

import os
from pathlib import Path
from typing import Any

import click

from converter.cache import Cache, DamagedError, Entry, default_cache, read_part
from converter.cache_files import CacheError, check_name
from converter.cli.run import say
from converter.urls import file_name
from jax_edm2.strict_json import dumps

BROKEN = 2
_folder = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The cache.  [default: $DNNLIB_CACHE_DIR/downloads, else the user's cache folder]",
)


@click.group(name="edm2-convert", context_settings={"max_content_width": 100})
def edm2_convert_cache():
    """Holds `cache`, so that usage lines read `edm2-convert cache list`."""


@edm2_convert_cache.group(name="cache")
def _cache():
    """What edm2-convert has downloaded, and what NVlabs' own tool left in the same place."""


def _of(cache_dir: Path | None) -> Cache:
    return Cache(cache_dir) if cache_dir else default_cache()


@_cache.command(name="list")
@_folder
@click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")
def list_(cache_dir, json_):
    """Print the files in the cache: bytes, sha256 as recorded, name."""
    found = _of(cache_dir)
    rows: list[dict[str, Any]] = [
        {
            "path": str(entry.path),
            "name": entry.name,
            "bytes": os.lstat(entry.path).st_size,
            "sha256": (entry.record or {}).get("sha256"),
            "url": (entry.record or {}).get("url"),
            "damage": entry.damage,
        }
        for entry in found.entries()
    ]
    parts = [_part(path) for path in found.parts()]
    if json_:
        click.echo(dumps({"folder": str(found.folder), "files": rows, "parts": parts}))
        return
    for row in rows:
        known = "DAMAGED" if row["damage"] else row["sha256"] or "not used yet"
        say(f"{row['bytes']:>15,}  {known[:16]:16}  {row['name']}")
    for part in parts:
        say(f"{part['bytes']:>15,}  {'of ' + format(part['total'] or 0, ','):16}  {part['name']} (in part)")
    say(f"{found.folder}: {len(rows)} files, {sum(row['bytes'] for row in rows) / 1e6:,.1f} MB")


def _part(path: Path) -> dict[str, Any]:
    try:
        about = read_part(path.with_suffix(".json")) or {}
    except DamagedError:  # it is of no use, and begun again
        about = {}
    name = file_name(about["url"]) if about.get("url") else path.name
    return {"path": str(path), "name": name, "bytes": os.lstat(path).st_size, "total": about.get("bytes")}


@_cache.command()
@_folder
def verify(cache_dir):
    """Compare every file's sha256 with what was recorded of it; exit code 2 if one was altered, or its record was."""
    altered = 0
    for entry in _of(cache_dir).entries():
        try:
            found = entry.check()
        except CacheError as error:
            altered += 1
            say(f"{'DAMAGED' if entry.damage else 'ALTERED':10}{error}")
        else:
            say(f"{'ok' if entry.record else 'recorded':10}{found[:16]}  {entry.name}")
    return BROKEN if altered else 0


@_cache.command()
@_folder
@click.argument("names", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Everything that edm2-convert fetched or used.")
def clear(cache_dir, names, all_):
    """Remove files by NAME (as `list` shows them), or --all; parts of downloads that did not end go with them."""
    if bool(names) == all_:
        raise click.UsageError("give the NAME of a file, as `edm2-convert cache list` shows it, or --all")
    found = _of(cache_dir)
    entries = [entry for entry in found.entries() if entry.name in names or (all_ and (entry.record or entry.damage))]
    parts = [path for path in found.parts() if all_ or _part(path)["name"] in names]
    missing = set(names) - {entry.name for entry in entries} - {_part(path)["name"] for path in parts}
    if missing:
        raise CacheError(
            f"{found.folder}: holds no {sorted(missing)[0]}; `edm2-convert cache list` shows what it holds"
        )
    size = 0
    for path in [path for entry in entries for path in _files(entry)] + parts + [p.with_suffix(".json") for p in parts]:
        if check_name(path):
            size += path.lstat().st_size
            path.unlink()
    say(f"{found.folder}: {len(entries)} files and {len(parts)} parts removed, {size / 1e6:,.1f} MB")


def _files(entry: Entry) -> list[Path]:
    return [entry.path, entry.record_path]
