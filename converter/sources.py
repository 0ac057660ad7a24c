"""Where a snapshot is: on this disk, behind a URL, in a store, or of a preset; and how it is brought here."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jax_edm2 import remote
from jax_edm2.messages import one_line

from . import presets
from .checkpoint_weights import read_checkpoint
from .downloads.cache import Cache, cache_in, sha256
from .downloads.cache_files import CacheError
from .downloads.urls import file_name, public_url
from .downloads.watchdog import TIMEOUT
from .errors import UsageError
from .opening import SAFETENSORS, open_weights

_URL = re.compile(r"(https?:|[a-z][a-z0-9+.-]*:[/\\]{2}).*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A snapshot's path or URL, or that of a checkpoint in a store."""

    text: str

    @property
    def remote(self) -> bool:
        """Also of what is nearly a URL: a password in it must not be shown as a path."""
        return bool(_URL.fullmatch("".join(c for c in self.text if c.isprintable() and c != " ")))

    @property
    def stored(self) -> bool:
        """In a store: such a URL holds no secret."""
        return remote.is_stored(self.text)

    @property
    def stored_checkpoint(self) -> bool:
        """One that `jax_edm2.load` reads where it is."""
        return self.stored and self.text.endswith(SAFETENSORS)

    @property
    def name(self) -> str:
        """What the snapshot is known by: its file's name, or its URL without what may be secret in that."""
        if self.stored:
            return one_line(self.text)
        return public_url(self.text) if self.remote else Path(self.text).name

    @property
    def stem(self) -> str:
        """Of the file's name; what is made from it is named so."""
        if self.stored:
            return Path(remote.file_name(self.text)).stem or "snapshot"
        return Path(file_name(self.text) if self.remote else self.name).stem or "snapshot"


@dataclass(frozen=True)
class Fetching:
    """How files are brought here.

    sha256: what the snapshot's file must have. cache_dir: where downloads are kept; None is the user's cache. offline:
    nothing is fetched. timeout: the longest silence of a server, in seconds.
    """

    sha256: str | None = None
    cache_dir: Path | None = None
    offline: bool = False
    timeout: float = TIMEOUT

    @property
    def cache(self) -> Cache:
        return cache_in(self.cache_dir)

    def bring(self, location: Location) -> Path:
        """The path of a snapshot on this disk. Raises: ConverterError, OSError."""
        if location.remote:
            return self.fetch(location.text, check_of(location.text), self.sha256)
        path = Path(location.text)
        if self.sha256 is not None and path.is_dir():
            raise CacheError(f"{path}: is a folder, which has no sha256")
        if self.sha256 is not None and path.is_file() and (found := sha256(path)) != self.sha256.lower():
            raise CacheError(f"{path}: its sha256 is {found}, not {self.sha256.lower()} as demanded")
        return path

    def fetch(self, url: str, check: Callable[[Path], object], sha256: str | None = None) -> Path:
        """The path of the file of any URL, also a store's, which `check` must find sound.

        Raises: ConverterError, CheckpointError, OSError.
        """
        from .downloads.download import fetch
        from .downloads.stored import fetch_stored

        if remote.is_stored(url):
            return fetch_stored(url, self.cache, sha256=sha256, offline=self.offline, check=check)
        return fetch(url, self.cache, sha256=sha256, offline=self.offline, timeout=self.timeout, check=check)


def check_of(url: str) -> Callable[[Path], object]:
    """What `Fetching.fetch` is to find sound under a URL: a checkpoint or a snapshot, as its name says."""
    return check_checkpoint if url.endswith(SAFETENSORS) else check_snapshot


def check_checkpoint(path: Path):
    """Raises: CheckpointError."""
    read_checkpoint(path).close()


def check_snapshot(path: Path):
    """Raises: ConverterError."""
    open_weights(path).close()


def locate(source: str | None, preset: str | None) -> tuple[Location, presets.Preset | None]:
    """The snapshot that is asked for, and its preset, if it is a preset's. Raises: UsageError, PresetError."""
    if source is not None and preset is not None:
        raise UsageError(f"{source} and --preset {preset} are two snapshots: give one of them")
    if source is None and preset is None:
        raise UsageError("give a SOURCE (a .pkl file or its URL), or --preset NAME; --list-presets shows them")
    if preset is not None:
        found = presets.find(preset)
        return Location(presets.url(found.net)), found
    location = Location(source or "")
    if not location.remote and not Path(location.text).exists():
        try:
            presets.find(location.text)
        except presets.PresetError:
            return location, None
        raise UsageError(f"{source}: there is no such file; did you mean --preset {source}?")
    return location, None
