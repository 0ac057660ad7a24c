"""What the options that take paths do with URLs: read their files, write to stores, or refuse them."""

from pathlib import Path
from typing import Any

import click

from jax_edm2.remote import is_stored

from ..downloads.watchdog import TIMEOUT
from ..sources import Fetching, Location


class LocalPath(click.Path):
    """A path on this disk."""

    name = "path"
    why = "this is to be on a disk"

    def __init__(self, **options):
        super().__init__(path_type=Path, **options)

    def convert(self, value, param, ctx):
        if isinstance(value, str) and (location := Location(value)).remote:
            self.fail(f"{location.name} is a URL, and {self.why}", param, ctx)
        return super().convert(value, param, ctx)


class StoredPath(LocalPath):
    """A path on this disk; or a text, which is a URL of a store."""

    why = "what is taken here are paths, and URLs of stores (s3://, gs://, hf://)"

    def convert(self, value, param, ctx):
        return value if is_stored(value) else super().convert(value, param, ctx)


class BroughtPath(LocalPath):
    """A path on this disk. Given a URL, also a store's, it is that of the file in the cache, fetched if need be."""

    def __init__(self, *, network: bool = False, **options):
        """network: what is neither a snapshot nor a checkpoint is not kept."""
        super().__init__(**options)
        self._network = network

    def convert(self, value, param, ctx):
        path = _brought(value, ctx, network=self._network)
        return super().convert(value, param, ctx) if path is None else path


class BroughtOrName(click.ParamType):
    """A text, which is a path or a name. Given a URL, likewise the path."""

    name = "text"

    def convert(self, value, param, ctx):
        path = _brought(value, ctx)
        return value if path is None else str(path)


def _brought(value: Any, ctx: click.Context | None, *, network: bool = False) -> Path | None:
    if not isinstance(value, str) or not (location := Location(value)).remote:
        return None
    given: dict[str, Any] = ctx.params if ctx else {}  # --cache-dir and so on are read before all other options
    cache_dir, timeout = given.get("cache_dir"), given.get("timeout")
    fetching = Fetching(
        cache_dir=cache_dir if isinstance(cache_dir, Path) else None,  # what is not given is not None
        offline=given.get("offline") is True,
        timeout=timeout if isinstance(timeout, int) else TIMEOUT,
    )
    return fetching.bring(location) if network else fetching.fetch(value, lambda path: None)
