"""From the name of a snapshot to checkpoints on this disk: it is fetched and converted, and so is a preset's guide.

fetch_and_convert(ConversionRequest(preset="edm2-img512-s-guid-dino", output=Path("weights")))
"""

import dataclasses
import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_edm2.checkpoint import read_record
from jax_edm2.messages import listing
from jax_edm2.orbax_checkpoint import MARK as ORBAX_MARK
from jax_edm2.record import CHECK, Record, Sampler
from jax_edm2.tensors import CheckpointError, Tensor, stored_dtype

from . import embedded, presets
from .convert import checkpoint_tensors, convert, describe
from .downloads.cache import sha256 as file_sha256
from .errors import UsageError
from .progress import Progress, Warn, silent
from .snapshot import Snapshot, read_snapshot
from .sources import Fetching, Location, locate

NAMED = 5  # tensors, in a warning
SUFFIXES = {"safetensors": ".safetensors", "orbax": ".orbax"}


@dataclass(frozen=True)
class ConversionRequest:
    """What is converted, and to what.

    source: a snapshot's path or URL; or else preset: a published network's name. output: the checkpoint to write, or a
    folder for it; by default it has the snapshot's name, in the working folder. format, dtype: as for
    `converter.convert.convert`. dry_run: nothing is written. force: an existing output is replaced.
    """

    source: str | None = None
    preset: str | None = None
    output: Path | None = None
    format: str = "safetensors"
    dtype: str = "keep"
    dry_run: bool = False
    force: bool = False
    fetching: Fetching = field(default_factory=Fetching)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a checkpoint holds it."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Converted:
    """What became of one snapshot.

    output: None in a dry run. written: False in a dry run, and where the very checkpoint was there already. tensors: by
    path in the JAX tree. metadata: the record as JSON; hashes, which a dry run does not compute, are None.
    """

    output: Path | None
    written: bool
    format: str
    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any]

    @property
    def parameters(self) -> int:
        return sum(math.prod(t.shape) for path, t in self.tensors.items() if path.startswith("params/"))

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "output": None if self.output is None else str(self.output),
            "written": self.written,
            "format": self.format,
            "parameters": self.parameters,
            "tensors": {path: dataclasses.asdict(tensor) for path, tensor in self.tensors.items()},
            "bytes": self.bytes,
            "metadata": self.metadata,
        }


@dataclass(frozen=True)
class Conversion:
    """What became of a request. guide: of the network that guides a guided preset's."""

    network: Converted
    guide: Converted | None = None

    def to_json(self) -> dict[str, Any]:
        return {**self.network.to_json(), "guide": self.guide.to_json() if self.guide else None}


def fetch_and_convert(
    request: ConversionRequest, *, warn: Warn = warnings.warn, progress: Progress = silent
) -> Conversion:
    """Do what is requested. A guide goes beside its network's checkpoint, and is kept if it is there already.

    warn: is given a line for each thing that the user should know. progress: of a file's name and its tensors' bytes.
    Raises: UsageError, ConverterError; FileExistsError unless `request.force`; OSError.
    """
    location, preset = locate(request.source, request.preset)
    guide = Location(presets.url(preset.guide)) if preset is not None and preset.guide else None
    if guide is not None and request.fetching.sha256 is not None:
        raise UsageError("--sha256 is for one file, and this preset has two; the cache remembers both hashes")
    output = _output(request.output, location, request.format)
    if output.exists() and not request.dry_run:  # before anything is fetched
        _about_to_replace(location, output, request.force)
    work = _Work(request, warn, progress)
    if guide is None or preset is None:
        return Conversion(work.convert(location, output))
    # The guide first, so that whoever finds the main checkpoint finds its guide
    beside = _output(output.parent, guide, request.format)
    sampler = Sampler(guidance=preset.guidance, guide=beside.name)
    guiding = work.convert(guide, beside, shared=True)
    return Conversion(work.convert(location, output, sampler), guiding)


def _about_to_replace(location: Location, output: Path, force: bool):
    """What is wrong with the input is said before what is wrong with the output."""
    if not location.remote:
        with read_snapshot(location.text) as snapshot:
            if output.samefile(snapshot.path):
                raise UsageError(f"{output} is the snapshot itself: choose another --output")
    if not force:
        raise FileExistsError(f"{output} exists")


def _output(output: Path | None, location: Location, format_: str) -> Path:
    """Where a snapshot's checkpoint goes: the path given, or its own name in the folder given, or here."""
    name = location.stem + SUFFIXES[format_]
    if output is None:
        return Path(name)
    return output / name if output.is_dir() and not (output / ORBAX_MARK).exists() else output


@dataclass(frozen=True)
class _Work:
    """What is the same for a network and for its guide."""

    request: ConversionRequest
    warn: Warn
    progress: Progress

    def convert(
        self, location: Location, output: Path, sampler: Sampler | None = None, shared: bool = False
    ) -> Converted:
        """Convert one snapshot and report. shared: keep an output that exists, if it is what would be written."""
        dry_run = self.request.dry_run
        with read_snapshot(self.request.fetching.bring(location)) as snapshot:
            tensors = checkpoint_tensors(snapshot, self.request.dtype)
            existing = _existing(snapshot, output, tensors) if shared else None
            not_finite: dict[str, int] = {}
            if dry_run or existing:
                record = existing or describe(snapshot, location.name, sampler)
            else:
                record = self._write(snapshot, location.name, output, sampler, not_finite)
            if not_finite:
                self.warn(f"{location.name}: {_not_finite(not_finite)}")
            if line := embedded.warning(location.name, embedded.identify(snapshot.source)):
                self.warn(line)
        return Converted(
            output=None if dry_run else output,
            written=not (dry_run or existing),
            format=self.request.format,
            tensors={path: StoredTensor(t.shape, t.dtype, t.nbytes) for path, t in tensors.items()},
            metadata=_metadata(record, tensors),
        )

    def _write(
        self, snapshot: Snapshot, name: str, output: Path, sampler: Sampler | None, not_finite: dict[str, int]
    ) -> Record:
        total = sum(record.data.length for record in snapshot.tensors.values())
        with self.progress(snapshot.path.name, total) as advance:
            return convert(
                snapshot, output, format=self.request.format, dtype=self.request.dtype, overwrite=self.request.force,
                name=name, sampler=sampler, progress=advance, not_finite=not_finite,
            )  # fmt: skip


def _existing(snapshot: Snapshot, output: Path, tensors: dict[str, Tensor]) -> Record | None:
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


def _metadata(record: Record, tensors: dict[str, Tensor]) -> dict[str, Any]:
    fields = json.loads(record.to_json())
    if not record.digest:
        del fields[CHECK]
        fields |= {"dtype": stored_dtype(tensors), "digest": None, "source": {**fields["source"], "sha256": None}}
    return fields
