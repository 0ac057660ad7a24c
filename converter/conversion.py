"""From the name of a file to others on this disk: it is fetched and converted, and so is a preset's guide.

fetch_and_convert(ConversionRequest(preset="edm2-img512-s-guid-dino", output=Path("weights")))
"""

import contextlib
import dataclasses
import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jax_edm2 import remote
from jax_edm2.checkpoint import read_record
from jax_edm2.config import EDM2Config
from jax_edm2.messages import listing
from jax_edm2.orbax_checkpoint import MARK as ORBAX_MARK
from jax_edm2.record import CHECK, Record, Sampler
from jax_edm2.state_layout import NET
from jax_edm2.tensors import CheckpointError, Tensor, stored_dtype

from . import embedded, inference, presets
from .convert import checkpoint_tensors, convert, describe
from .downloads.cache import sha256 as file_sha256
from .errors import UsageError
from .flops import paper_flops
from .memory import give_back_at_once
from .opening import is_training_state, open_weights
from .progress import Progress, Warn, silent
from .snapshot import read_snapshot
from .sources import Fetching, Location, locate
from .weights import Weights

NAMED = 5  # tensors, in a warning
SUFFIXES = {"safetensors": ".safetensors", "orbax": ".orbax", "pkl": ".pkl", "pt": ".pt"}  # of formats


@dataclass(frozen=True)
class ConversionRequest:
    """What is converted, and to what.

    source: the path of a snapshot, training state or checkpoint, its URL in a store, or a snapshot's URL; or else
    preset: a published network's name. output: the file to write, or a folder for it, or their URL in a store, where
    that of a folder ends in /; by default it has the source's name, in the working folder. format: one of SUFFIXES; by
    default what `output` ends in says, or safetensors, or for all of a training state orbax. dtype: as for
    `converter.convert.convert`. weights: which network of a training state. config_from: the file or published network
    that has a training state's configuration. like: the snapshot that a .pkl is a copy of but for its values. dry_run:
    nothing is written. force: an existing output is replaced.
    """

    source: str | None = None
    preset: str | None = None
    output: Path | str | None = None
    format: str | None = None
    dtype: str = "keep"
    weights: str | None = None
    config_from: str | None = None
    like: Path | None = None
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

    output: Path | str | None
    written: bool
    format: str
    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any]

    @property
    def parameters(self) -> int:
        """Of the network."""
        starts = "params/", f"{NET}/params/"
        return sum(math.prod(t.shape) for path, t in self.tensors.items() if path.startswith(starts))

    @property
    def gflops(self) -> float:
        """Of one evaluation for one image, as the papers count."""
        return paper_flops(EDM2Config(**self.metadata["config"])) / 1e9

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "output": None if self.output is None else str(self.output),
            "written": self.written,
            "format": self.format,
            "parameters": self.parameters,
            "gflops": self.gflops,
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
    form = _format(request, location)
    if form == "pt" and guide is not None:
        raise UsageError("a published network is no training state, which alone can be a .pt")
    output = _output(request.output, location, form, request.weights)
    if not request.dry_run:  # before anything is fetched
        _refuse_to_replace(request, location, output)
    work = _Work(request, form, warn, progress)
    if guide is None or preset is None:
        return Conversion(work.convert(location, output))
    # The guide first, so that whoever finds the main checkpoint finds its guide
    folder = output.parent if isinstance(output, Path) else f"{output.rpartition('/')[0]}/"
    beside = _output(folder, guide, form)
    sampler = Sampler(guidance=preset.guidance, guide=PurePosixPath(beside).name)
    guiding = work.convert(guide, beside, shared=True)
    return Conversion(work.convert(location, output, sampler), guiding)


def _refuse_to_replace(request: ConversionRequest, location: Location, output: Path | str):
    """What is wrong with the input is said before what is wrong with the output."""
    if isinstance(output, str):
        if not request.force and remote.exists(output):
            raise FileExistsError(f"{output} exists")
        return
    if not output.exists():
        return
    if not location.remote:
        path = Path(location.text)
        open_weights(path, request.weights, request.config_from).close()
        if output.samefile(path):
            raise UsageError(f"{output} is the file that is read: choose another --output")
    if not request.force:
        raise FileExistsError(f"{output} exists")


def _format(request: ConversionRequest, location: Location) -> str:
    """Raises: UsageError where what is asked for contradicts itself."""
    output, path = request.output, Path(location.text)
    whole = request.weights is None and not location.remote and path.is_file() and is_training_state(path)
    form = "orbax" if whole else "safetensors"
    if output is not None and not (isinstance(output, Path) and output.is_dir()):
        form = next((form for form, suffix in SUFFIXES.items() if PurePosixPath(output).suffix == suffix), form)
    if request.like is not None and request.format is None:
        form = "pkl"
    form = request.format or form
    if request.like is not None and (form, request.dtype) != ("pkl", "keep"):
        raise UsageError("--like is for --format pkl, in the dtype that the original has")
    if form == "orbax" and isinstance(output, str):
        raise UsageError(
            f"{output}: an orbax folder is many files, and in a store we write one: choose another --format"
        )
    return form


def _output(output: Path | str | None, location: Location, form: str, part: str | None = None) -> Path | str:
    """Where a file goes: the path given, or the source's own name in the folder given, or here."""
    name = location.stem + (f"-{part}" if part else "") + SUFFIXES[form]
    if output is None:
        return Path(name)
    if isinstance(output, str):
        return output + name if output.endswith("/") else output
    return output / name if output.is_dir() and not (output / ORBAX_MARK).exists() else output


@dataclass(frozen=True)
class _Work:
    """What is the same for a network and for its guide."""

    request: ConversionRequest
    format: str
    warn: Warn
    progress: Progress

    def convert(
        self, location: Location, output: Path | str, sampler: Sampler | None = None, shared: bool = False
    ) -> Converted:
        """Convert one file and report. shared: keep an output that exists, if it is what would be written."""
        request = self.request
        path = request.fetching.bring(location)
        with open_weights(path, request.weights, request.config_from) as weights:
            tensors = checkpoint_tensors(weights, request.dtype)
            existing = _existing(weights, output, tensors) if shared else None
            not_finite: dict[str, int] = {}
            if request.dry_run or existing:
                record = existing or describe(weights, location.name, sampler)
            else:
                record = self._write(weights, location.name, output, sampler, not_finite)
            if not_finite:
                self.warn(f"{location.name}: {_not_finite(not_finite)}")
            if line := inference.warning(location.name, record.assumed):
                self.warn(line)
            if line := embedded.warning(location.name, record.code):
                self.warn(line)
        return Converted(
            output=None if request.dry_run else output,
            written=not (request.dry_run or existing),
            format=self.format,
            tensors={path: StoredTensor(t.shape, t.dtype, t.nbytes) for path, t in tensors.items()},
            metadata=_metadata(record, tensors),
        )

    def _write(
        self, weights: Weights, name: str, output: Path | str, sampler: Sampler | None, not_finite: dict[str, int]
    ) -> Record:
        request = self.request
        total = sum(record.data.length for record in weights.tensors.values()) * (2 if self.format == "orbax" else 1)
        if self.format == "orbax" or weights.file is None:
            give_back_at_once()
        with contextlib.ExitStack() as stack:
            like = stack.enter_context(read_snapshot(request.like)) if request.like else None
            uploading = remote.uploading(output, overwrite=request.force) if isinstance(output, str) else None
            target = stack.enter_context(uploading) if uploading else output
            advance = stack.enter_context(self.progress(weights.path.name, total))
            return convert(
                weights, target, format=self.format, dtype=request.dtype, like=like, overwrite=request.force,
                name=name, sampler=sampler, progress=advance, not_finite=not_finite,
            )  # fmt: skip


def _existing(weights: Weights, output: Path | str, tensors: dict[str, Tensor]) -> Record | None:
    """The record of a checkpoint at `output` that was made from this very file, in this dtype."""
    try:
        record = read_record(output)
    except CheckpointError:
        return None
    same = record.source is not None and record.source.sha256 == file_sha256(weights.path)
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
        fields |= {"dtype": stored_dtype(tensors), "digest": None}
        if fields["source"] is not None:
            fields["source"]["sha256"] = None
    return fields
