"""What a command works on: a snapshot on disk, behind a URL, or of a preset."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from converter import presets
from converter.cache import Cache, default_cache, sha256
from converter.cache_files import CacheError
from converter.snapshot import read_snapshot
from converter.urls import file_name, public_url
from converter.watchdog import PERIOD, SPEED, TIMEOUT

_URL = re.compile(r"(https?:|[a-z][a-z0-9+.-]*:[/\\]{2}).*", re.DOTALL | re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Location:
    """A snapshot's path or URL."""

    text: str

    @property
    def remote(self) -> bool:
        """Also of what is nearly a URL: a password in it must not be shown as a path."""
        return bool(_URL.fullmatch("".join(c for c in self.text if c.isprintable() and c != " ")))

    @property
    def name(self) -> str:
        """What the snapshot is known by: its file's name, or its URL without what may be secret in that."""
        return public_url(self.text) if self.remote else Path(self.text).name

    @property
    def stem(self) -> str:
        """Of the file's name; what is made from it is named so."""
        return Path(file_name(self.text) if self.remote else self.name).stem or "snapshot"


@dataclass(frozen=True)
class Fetching:
    """How files are brought here: the options that `options` adds."""

    sha256: str | None
    cache_dir: Path | None
    offline: bool
    timeout: float = TIMEOUT

    @property
    def cache(self) -> Cache:
        return Cache(self.cache_dir) if self.cache_dir else default_cache()

    def bring(self, location: Location) -> Path:
        """The path of a snapshot on this disk. Raises: ConverterError, OSError."""
        if location.remote:
            return self.fetch(location.text, _check, self.sha256)
        path = Path(location.text)
        if self.sha256 is not None and path.is_dir():
            raise CacheError(f"{path}: is a folder, which has no sha256")
        if self.sha256 is not None and path.is_file() and (found := sha256(path)) != self.sha256.lower():
            raise CacheError(f"{path}: its sha256 is {found}, not {self.sha256.lower()} as demanded")
        return path

    def fetch(self, url: str, check: Callable[[Path], object], sha256: str | None = None) -> Path:
        """The path of any URL's file, which `check` must find sound. Raises: ConverterError, OSError."""
        from converter.download import fetch

        return fetch(url, self.cache, sha256=sha256, offline=self.offline, timeout=self.timeout, check=check)


def _check(path: Path):
    read_snapshot(path).close()


def _sha256(_context, _parameter, value: str | None) -> str | None:
    if value is not None and not _SHA256.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no sha256: 64 hexadecimal digits")
    return value


def options(command: Callable) -> Callable:
    """Adds --preset, --sha256, --cache-dir, --offline and --timeout to a command."""
    for option in reversed(
        (
            click.option("--preset", metavar="NAME", help="A published network: see edm2-convert --list-presets."),
            click.option("--sha256", metavar="HEX", callback=_sha256, help="What the snapshot's file must have."),
            click.option(
                "--cache-dir",
                type=click.Path(path_type=Path, file_okay=False),
                help="Where downloads are kept.  [default: $DNNLIB_CACHE_DIR/downloads, else the user's cache folder]",
            ),
            click.option("--offline", is_flag=True, help="Use only what has been downloaded already."),
            click.option(
                "--timeout",
                metavar="SECONDS",
                type=click.IntRange(1, 3600),
                default=TIMEOUT,
                show_default=True,
                help="Longest silence of a server before a download is tried again. An answer that has not begun after "
                f"{PERIOD} times as long, or brings less than {SPEED:,} bytes a second over that, breaks off too.",
            ),
        )
    ):
        command = option(command)
    return command


def locate(source: str | None, preset: str | None) -> tuple[Location, presets.Preset | None]:
    """The snapshot that was asked for, and its preset, if that was a preset. Raises: click.UsageError, PresetError."""
    if (source is None) == (preset is None):
        raise click.UsageError("give a SOURCE (a .pkl file or its URL), or --preset NAME; --list-presets shows them")
    if preset is not None:
        found = presets.find(preset)
        return Location(presets.url(found.net)), found
    location = Location(source or "")
    if not location.remote and not Path(location.text).exists():
        try:
            presets.find(location.text)
        except presets.PresetError:
            return location, None
        raise click.UsageError(f"{source}: there is no such file; did you mean --preset {source}?")
    return location, None
