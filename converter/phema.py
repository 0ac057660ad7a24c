"""Post-hoc EMA (arXiv 2312.02696, Appendix C): averages of other lengths, made of the snapshots that a training left.

report = reconstruct(PhemaRequest(indir=Path("raw-snapshots/edm2-img512-xs"), outdir=Path("out"), outstd=(0.1, 0.15)))

`converter.averages` does the work; here is what is wanted, and of what it is made.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from jax_edm2 import remote
from jax_edm2.files import Target, is_there, whole_or_nothing, within
from jax_edm2.messages import listing
from jax_edm2.orbax_checkpoint import MARK as ORBAX_MARK
from jax_edm2.record import Average, Record, tensors_digest
from jax_edm2.safetensors_checkpoint import Writing
from jax_edm2.tensors import Tensor, refuse_to_lose, stored_dtype

from . import presets
from .averages import Averages, Journal
from .checkpoint_weights import CheckpointWeights, read_checkpoint
from .convert import convert, describe
from .errors import ConverterError, UsageError
from .names import jax_path
from .opening import open_network
from .progress import Progress, Warn, silent
from .snapshot import Snapshot, read_snapshot
from .sources import Fetching, check_of
from .to_snapshot import WritingLike
from .weights import Weights

if TYPE_CHECKING:
    import numpy as np

FILE_NAME = re.compile(r"(?P<prefix>.*)-(?P<kimg>\d{1,9})-(?P<std>\d+\.\d+)\.(pkl|safetensors)", re.DOTALL)
SUFFIXES = {"safetensors": ".safetensors", "orbax": ".orbax", "pkl": ".pkl"}  # of formats
NAMED = 4  # snapshots that are missing, in a warning
HALF = 2.0**-11  # what rounding a value to float16 may change it by, relatively


class PhemaError(ConverterError):
    """Averages that cannot be made of what is there."""


@dataclass(frozen=True)
class PhemaRequest:
    """Averages that are to be made.

    indir: a folder of snapshots, whose names end in -KIMG-STD.pkl, also a store's (its URL as a text); or the name of a
    published training run, of which those up to outkimg are fetched. outdir: for OUTPREFIX-KIMG-STD.safetensors, here
    or in a store. outstd: relative standard deviations, 0 < std < 0.289. outkimg: the time of the averages, which is
    that of one of the snapshots; the last by default. inprefix, instd: which snapshots. skip: averages that are there
    are left; force: they are replaced. dtype: keep (the snapshots'), float16 or float32. format: safetensors, orbax, or
    pkl: the last snapshot with other values, for NVlabs' tools. nvlabs_rounding: every product and sum is rounded to
    float32, in the order of NVlabs' reconstruct_phema.py, for the same bits.
    Raises: UsageError for values that make no sense in themselves.
    """

    indir: Target
    outdir: Target
    outstd: Sequence[float]
    outkimg: int | None = None
    outprefix: str = "phema"
    inprefix: str | None = None
    instd: Sequence[float] | None = None
    skip: bool = False
    force: bool = False
    dtype: str = "keep"
    nvlabs_rounding: bool = False
    format: str = "safetensors"
    fetching: Fetching = field(default_factory=Fetching)

    def __post_init__(self):
        if not self.outstd:
            raise UsageError("--outstd lists no std")
        names = [f"{std:.3f}" for std in self.outstd]
        for std, name in zip(self.outstd, names, strict=True):
            if not 0 < std < 0.289:
                raise UsageError(f"--outstd {std:g}: a std must be above 0 and below 0.289")
            if names.count(name) > 1:
                raise UsageError(f"--outstd has several averages that would be called {name}")
        if self.format == "orbax" and isinstance(self.outdir, str):
            raise UsageError(
                f"{self.outdir}: in a store we write single files, not orbax folders: take another --format"
            )
        if self.format == "pkl" and self.dtype != "keep":
            raise UsageError("--format pkl has the snapshots' dtype: leave --dtype out")


@dataclass(frozen=True)
class Input:
    """A snapshot's file, and what its name says."""

    path: Path
    name: str  # which its path in the cache has not
    prefix: str
    images: int
    std: float

    @property
    def profile(self) -> tuple[float, float]:
        return self.images, self.std


@dataclass(frozen=True)
class Made:
    """An average. magnitude: the sum of its coefficients' magnitudes. error: what float16 snapshots bring at most,
    relative to the largest weight."""

    path: Target
    record: Record
    magnitude: float
    error: float

    def to_json(self) -> dict[str, Any]:
        average = dataclasses.asdict(self.record.average) if self.record.average else None
        figures = {"magnitude": self.magnitude, "error": self.error}
        return {"output": str(self.path), "digest": self.record.digest, **figures, "average": average}


@dataclass(frozen=True)
class PhemaReport:
    made: list[Made]
    skipped: list[Target] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"made": [made.to_json() for made in self.made], "skipped": [str(path) for path in self.skipped]}


def reconstruct(request: PhemaRequest, *, warn: Warn = warnings.warn, progress: Progress = silent) -> PhemaReport:
    """Make the averages; each appears whole or not at all, and all at the end.

    Killed or interrupted, it goes on from the last tensor that was done when the same is asked for again.
    warn: is given a line for each thing that the user should know. progress: of the bytes that are read.
    Raises: UsageError, ConverterError, CheckpointError; FileExistsError unless `skip` or `force`; OSError.
    """
    inputs = find_inputs(request)
    images = _images(request.outkimg, inputs)
    inputs = [each for each in inputs if each.images <= images]
    name = f"{request.outprefix}-{images // 1000:07d}"
    suffix = SUFFIXES[request.format]
    outputs = {std: within(request.outdir, f"{name}-{std:.3f}{suffix}") for std in sorted(request.outstd)}
    skipped = [path for path in outputs.values() if request.skip and is_there(path)]
    outputs = {std: path for std, path in outputs.items() if path not in skipped}
    if not outputs:
        return PhemaReport([], skipped)
    coefficients, condition = _coefficients(inputs, images, list(outputs), request.nvlabs_rounding)
    with contextlib.ExitStack() as stack:
        snapshots = [stack.enter_context(_opened(each)) for each in inputs]
        _refuse_strangers(snapshots)
        if request.format == "pkl" and not isinstance(snapshots[-1], Snapshot):
            raise PhemaError(f"{inputs[-1].path}: --format pkl makes copies of the last snapshot, which must be a .pkl")
        if missing := _missing(inputs):
            warn(f"{request.indir}: has no {listing(missing)}: averages are made of what is there")
        work = _Work(request, inputs, snapshots, coefficients, condition, images, outputs)
        here = request.outdir if isinstance(request.outdir, Path) else request.fetching.cache.folder
        here.mkdir(parents=True, exist_ok=True)
        key = work.key()
        unfinished = here / f".{name}-{key[:8]}.phema"
        journal = stack.enter_context(Journal.opened(unfinished, key))
        try:
            made = work.run(journal, progress)
        except KeyboardInterrupt:
            warn(f"{unfinished}: has what is done so far; the same command goes on from there")
            raise
    for each in made:
        if each.error > 0.01:
            warn(
                f"{PurePath(each.path).name}: its coefficients add up to {each.magnitude:.0f} in magnitude: rounding "
                f"in the snapshots may change it by {each.error:.1%} of its largest weight"
            )
    return PhemaReport(made, skipped)


# Which snapshots


def find_inputs(request: PhemaRequest) -> list[Input]:
    """By time, then by std; those of a store or a published run are fetched.

    Raises: ConverterError, CheckpointError, OSError.
    """
    names: Mapping[str, Path | str]
    if isinstance(request.indir, str):
        names = dict(sorted(remote.listing(request.indir).items()))
    elif request.indir.is_dir():
        names = {path.name: path for path in sorted(request.indir.iterdir()) if path.is_file()}
    else:
        names = {name: presets.raw_url(name) for name in _published(request)}
    found = []
    for name, path in names.items():
        match = FILE_NAME.fullmatch(name)
        if name.endswith(".safetensors") and name.removesuffix(".safetensors") + ".pkl" in names:
            continue  # edm2-train writes both
        if not match or request.inprefix not in (None, match["prefix"]):
            continue
        std = float(match["std"])
        if request.instd is None or std in request.instd:
            path = path if isinstance(path, Path) else request.fetching.fetch(path, check_of(path))
            found.append(Input(path, name, match["prefix"], images_of(int(match["kimg"]), str(path)), std))
    if not found:
        raise PhemaError(
            f"{request.indir}: has no snapshots with names such as {request.inprefix or 'NAME'}-0134217-0.100.pkl"
        )
    if len(prefixes := sorted({each.prefix for each in found})) > 1:
        raise PhemaError(
            f"{request.indir}: has snapshots of several runs ({', '.join(prefixes[:4])}); choose with --inprefix"
        )
    return sorted((each for each in found if each.images), key=lambda each: each.profile)


def _published(request: PhemaRequest) -> list[str]:
    try:
        return [f"{name}.pkl" for name in presets.raw_snapshots(str(request.indir), request.outkimg)]
    except presets.PresetError as error:
        raise PhemaError(f"{request.indir}: there is no such folder, and {error}") from None


def _missing(inputs: list[Input]) -> list[str]:
    """Names of snapshots of a time and a std that others have, but not together."""
    times, stds, there = {e.images for e in inputs}, {e.std for e in inputs}, {e.profile for e in inputs}
    lacking = [(time, std) for time in sorted(times) for std in sorted(stds) if (time, std) not in there]
    names = [f"{inputs[0].prefix}-{time // 1000:07d}-{std:.3f}.pkl" for time, std in lacking]
    return names[:NAMED] + ([f"{len(names) - NAMED} more"] if len(names) > NAMED else [])


def images_of(kimg: int, where: str) -> int:
    """How many images training had seen, of which a file name has the thousands: a multiple of 1,024."""
    images = (kimg * 1000 + 999) // 1024 * 1024
    if images // 1000 != kimg:
        raise PhemaError(f"{where}: no training of EDM2 has a snapshot at {kimg} thousand images")
    return images


def _images(kimg: int | None, inputs: list[Input]) -> int:
    if not inputs:
        raise PhemaError("there is no snapshot but that of the beginning")
    if kimg is None:
        return inputs[-1].images
    images = images_of(kimg, f"--outkimg {kimg}")
    if images not in {each.images for each in inputs}:
        known = ", ".join(str(images // 1000) for images in sorted({each.images for each in inputs})[-4:])
        raise PhemaError(f"--outkimg {kimg}: no snapshot is of that time; the last ones are of {known}")
    return images


def _coefficients(inputs: list[Input], images: int, stds: list[float], nvlabs: bool) -> "tuple[np.ndarray, float]":
    """[snapshots, averages], and the condition number."""
    import numpy as np

    from jax_edm2.ema import nvlabs_coefficients, posthoc_coefficients, posthoc_condition

    stored, solve = [each.profile for each in inputs], nvlabs_coefficients if nvlabs else posthoc_coefficients
    try:
        posthoc_coefficients(stored, [(images, std) for std in stds])  # which looks closely at all of it
        # One by one: an average does not depend on what else is made.
        return np.column_stack([solve(stored, [(images, std)])[:, 0] for std in stds]), posthoc_condition(stored)
    except ValueError as error:
        raise PhemaError(f"{inputs[0].path.parent}: {error}") from None


def _opened(each: Input) -> Weights:
    """A snapshot of NVlabs' container, or a checkpoint that edm2-train wrote."""
    return open_network(each.path) if each.name.endswith(".safetensors") else read_snapshot(each.path)


def _refuse_strangers(snapshots: Sequence[Weights]):
    """All are of one architecture, and have their tensors in the same dtypes."""
    first = snapshots[-1]
    for other in snapshots:
        if other.config != first.config:
            raise PhemaError(f"{other.path}: is of another architecture than {first.path.name}")
        for name, tensor in first.tensors.items():
            if other.tensors[name].dtype != tensor.dtype:
                raise PhemaError(
                    f"{other.path}: {name} is {other.tensors[name].dtype}, in {first.path.name} {tensor.dtype}"
                )


# The work


@dataclass(frozen=True)
class _Work:
    request: PhemaRequest
    inputs: list[Input]
    snapshots: Sequence[Weights]
    coefficients: "np.ndarray"  # float64 [snapshots, averages]
    condition: float
    images: int
    outputs: dict[float, Target]  # by std

    def key(self) -> str:
        """What the averages depend on: who has the same may go on with them."""
        status = [(each.name, (s := each.path.stat()).st_size, s.st_mtime_ns) for each in self.inputs]
        request = self.request
        wanted = [str(path) for path in self.outputs.values()], request.dtype, request.nvlabs_rounding, request.format
        content = [status, self.coefficients.tolist(), *wanted]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def run(self, journal: Journal, progress: Progress) -> list[Made]:
        for column, path in enumerate(self.outputs.values()):
            if column not in journal.placed and column not in journal.placing:
                if isinstance(path, Path):
                    refuse_to_lose(path, unless=ORBAX_MARK if self.request.format == "orbax" else None)
                if not self.request.force and is_there(path):
                    raise FileExistsError(f"{path} exists")
        dtypes = {name: self._dtype(record.dtype) for name, record in self.snapshots[-1].tensors.items()}
        averages = Averages(self.snapshots, self.coefficients, dtypes, self.request.nvlabs_rounding)
        tensors = {
            jax_path(name): Tensor(dtypes[name], t.shape, list) for name, t in averages.snapshots[-1].tensors.items()
        }
        total = len(self.snapshots) * sum(record.data.length for record in self.snapshots[-1].tensors.values())
        with contextlib.ExitStack() as stack:
            writings: list[Any] = [
                stack.enter_context(self._writing(journal.folder / str(column), column, tensors))
                for column in range(len(self.outputs))
                if column not in journal.placed
            ]
            if len(writings) == len(self.outputs):
                advance = stack.enter_context(progress(PurePath(self.request.indir).name, total))
                averages.write(writings, journal, advance)
            else:  # all were whole, and some are in their places
                for name, done in journal.tensors.items():
                    columns = [column for column in range(len(self.outputs)) if column not in journal.placed]
                    for column, writing in zip(columns, writings, strict=True):
                        writing.hashes.restore(jax_path(name), done.outputs[column])
            remaining = iter(writings)
            for column, path in enumerate(self.outputs.values()):
                if column not in journal.placed:
                    journal.place(column, self._place(journal, column, next(remaining), path))
        return [self._made(column, path, journal.placed[column]) for column, path in enumerate(self.outputs.values())]

    def _dtype(self, stored: str) -> str:
        return stored if self.request.dtype == "keep" else self.request.dtype

    def _writing(self, path: Path, column: int, tensors: dict[str, Tensor]) -> Writing | WritingLike:
        record = self._record(column, tensors)
        if isinstance(last := self.snapshots[-1], Snapshot) and self.request.format == "pkl":
            return WritingLike(last, path, tensors, record)
        return Writing(path, tensors, record)

    def _place(self, journal: Journal, column: int, writing: Writing | WritingLike, path: Target) -> Record:
        """Finish an average, and put it where it belongs."""
        digests = tuple(journal.digest(number, snapshot) for number, snapshot in enumerate(self.snapshots))
        for snapshot, digest in zip(self.snapshots, digests, strict=True):
            if isinstance(snapshot, CheckpointWeights) and snapshot.record.digest not in ("", digest):
                raise PhemaError(f"{snapshot.path}: its tensors are not those of its record: it is damaged")
        count = sum(done.bad[column] for done in journal.tensors.values())

        def complete(record: Record) -> Record:
            assert record.average is not None
            average = dataclasses.replace(record.average, digests=digests)
            return dataclasses.replace(record, average=average, not_finite=count)

        record, part = writing.finish(complete), journal.folder / str(column)
        if column in journal.placing and not self.request.force and is_there(path):
            return record
        journal.begin_to_place(column)
        if self.request.format == "orbax" and isinstance(path, Path):
            with read_checkpoint(part) as weights:
                return convert(weights, path, format="orbax", overwrite=self.request.force)
        with whole_or_nothing(path, overwrite=self.request.force) as temporary:
            try:
                os.link(part, temporary)  # and not moved: if nothing is done after this, it is done again
            except OSError:  # not on every file system
                shutil.copyfile(part, temporary)
        return record

    def _made(self, column: int, path: Target, record: Record) -> Made:
        magnitude = float(abs(self.coefficients[:, column]).sum())
        half = any(record.dtype == "float16" for record in self.snapshots[-1].tensors.values())
        return Made(path, record, magnitude, magnitude * HALF if half else 0.0)

    def _record(self, column: int, tensors: dict[str, Tensor]) -> Record:
        """All but the digests, which have the length that they will have."""
        average = Average(
            std=float(list(self.outputs)[column]), images=self.images,
            names=tuple(each.name for each in self.inputs),
            digests=(tensors_digest({}),) * len(self.inputs), images_seen=tuple(each.images for each in self.inputs),
            stds=tuple(each.std for each in self.inputs), coefficients=tuple(map(float, self.coefficients[:, column])),
            condition=self.condition,
        )  # fmt: skip
        last = describe(self.snapshots[-1])
        return dataclasses.replace(last, source=None, average=average, dtype=stored_dtype(tensors))
