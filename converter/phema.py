"""Post-hoc EMA (arXiv 2312.02696, Appendix C): averages of other lengths, made of the snapshots that a training left.

report = reconstruct(PhemaRequest(indir=Path("raw-snapshots/edm2-img512-xs"), outdir=Path("out"), outstd=(0.1, 0.15)))

Every byte of the snapshots is read once for all averages, a piece of one tensor at a time across all files. A piece of
all averages is one product of matrices in float64, which is rounded once.
"""

import contextlib
import dataclasses
import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.dtypes import DTYPES, not_finite
from jax_edm2.files import whole_or_nothing
from jax_edm2.record import Average, Record, tensors_digest
from jax_edm2.safetensors_checkpoint import Writing
from jax_edm2.tensors import Tensor, refuse_to_lose, stored_dtype

from .convert import describe
from .errors import ConverterError, UsageError
from .names import jax_path
from .progress import Progress, Warn, silent
from .snapshot import Snapshot, read_snapshot

if TYPE_CHECKING:
    import numpy as np

FILE_NAME = re.compile(r"(?P<prefix>.*)-(?P<kimg>\d{1,9})-(?P<std>\d+\.\d+)\.pkl", re.DOTALL)
AT_ONCE = 2**22  # values of all snapshots together: what memory depends on
HALF = 2.0**-11  # what rounding a value to float16 may change it by, relatively
WORKERS = 4


class PhemaError(ConverterError):
    """Averages that cannot be made of what is there."""


@dataclass(frozen=True)
class PhemaRequest:
    """Averages that are to be made.

    indir: a folder of snapshots, whose names end in -KIMG-STD.pkl. outdir: for OUTPREFIX-KIMG-STD.safetensors. outstd:
    relative standard deviations, 0 < std < 0.289. outkimg: the time of the averages, which is that of one of the
    snapshots; the last by default. inprefix, instd: which snapshots. skip: averages that are there are left; force:
    they are replaced. dtype: keep (the snapshots'), float16 or float32. nvlabs_rounding: every product and sum is
    rounded to float32, in the order of NVlabs' reconstruct_phema.py, for the same bits.
    Raises: UsageError for values that make no sense in themselves.
    """

    indir: Path
    outdir: Path
    outstd: Sequence[float]
    outkimg: int | None = None
    outprefix: str = "phema"
    inprefix: str | None = None
    instd: Sequence[float] | None = None
    skip: bool = False
    force: bool = False
    dtype: str = "keep"
    nvlabs_rounding: bool = False

    def __post_init__(self):
        if not self.outstd:
            raise UsageError("--outstd lists no std")
        names = [f"{std:.3f}" for std in self.outstd]
        for std, name in zip(self.outstd, names, strict=True):
            if not 0 < std < 0.289:
                raise UsageError(f"--outstd {std:g}: a std must be above 0 and below 0.289")
            if names.count(name) > 1:
                raise UsageError(f"--outstd has several averages that would be called {name}")


@dataclass(frozen=True)
class Input:
    """A snapshot's file, and what its name says."""

    path: Path
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

    path: Path
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
    skipped: list[Path] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"made": [made.to_json() for made in self.made], "skipped": [str(path) for path in self.skipped]}


def reconstruct(request: PhemaRequest, *, warn: Warn = warnings.warn, progress: Progress = silent) -> PhemaReport:
    """Make the averages; each appears whole or not at all, and all at the end.

    warn: is given a line for each thing that the user should know. progress: of the bytes that are read.
    Raises: UsageError, ConverterError, CheckpointError; FileExistsError unless `skip` or `force`; OSError.
    """
    inputs = find_inputs(request)
    images = _images(request.outkimg, inputs)
    inputs = [each for each in inputs if each.images <= images]
    outputs = {std: request.outdir / f"{request.outprefix}-{images // 1000:07d}-{std:.3f}.safetensors"
               for std in sorted(request.outstd)}  # fmt: skip
    skipped = [path for path in outputs.values() if request.skip and path.exists()]
    outputs = {std: path for std, path in outputs.items() if path not in skipped}
    if not outputs:
        return PhemaReport([], skipped)
    coefficients, condition = _coefficients(inputs, images, list(outputs), request.nvlabs_rounding)
    request.outdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        snapshots = [stack.enter_context(read_snapshot(each.path)) for each in inputs]
        _refuse_strangers(snapshots)
        work = _Work(request, inputs, snapshots, coefficients, condition, images)
        made = work.run(list(outputs.items()), progress, stack)
    for each in made:
        if each.error > 0.01:
            warn(
                f"{each.path.name}: its coefficients add up to {each.magnitude:.0f} in magnitude: rounding in the "
                f"snapshots may change it by {each.error:.1%} of its largest weight"
            )
    return PhemaReport(made, skipped)


# Which snapshots


def find_inputs(request: PhemaRequest) -> list[Input]:
    """By time, then by std. Raises: PhemaError, OSError."""
    if not request.indir.is_dir():
        raise PhemaError(f"{request.indir}: there is no such folder")
    found = []
    for path in sorted(request.indir.iterdir()):
        match = FILE_NAME.fullmatch(path.name)
        if not match or not path.is_file() or request.inprefix not in (None, match["prefix"]):
            continue
        std = float(match["std"])
        if request.instd is None or std in request.instd:
            found.append(Input(path, match["prefix"], images_of(int(match["kimg"]), str(path)), std))
    if not found:
        raise PhemaError(
            f"{request.indir}: has no snapshots with names such as {request.inprefix or 'NAME'}-0134217-0.100.pkl"
        )
    if len(prefixes := sorted({each.prefix for each in found})) > 1:
        raise PhemaError(
            f"{request.indir}: has snapshots of several runs ({', '.join(prefixes[:4])}); choose with --inprefix"
        )
    return sorted((each for each in found if each.images), key=lambda each: each.profile)


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


def _refuse_strangers(snapshots: list[Snapshot]):
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
    snapshots: list[Snapshot]
    coefficients: "np.ndarray"  # float64 [snapshots, averages]
    condition: float
    images: int

    def run(self, outputs: list[tuple[float, Path]], progress: Progress, stack: contextlib.ExitStack) -> list[Made]:
        tensors = self._tensors()
        writings = []
        for column, (std, path) in enumerate(outputs):
            refuse_to_lose(path)
            temporary = stack.enter_context(whole_or_nothing(path, overwrite=self.request.force))
            writings.append(stack.enter_context(Writing(temporary, tensors, self._record(column, std, tensors))))
        hashes: list[dict[str, Any]] = [{name: hashlib.sha256() for name in each.tensors} for each in self.snapshots]
        total = len(self.snapshots) * sum(record.data.length for record in self.snapshots[-1].tensors.values())
        with progress(self.request.indir.name, total) as advance, ThreadPoolExecutor(WORKERS) as pool:
            behind: list[Future] = []
            bad = [0] * len(writings)  # values that are NaN or infinite
            for name, pieces, wide in self._pieces(pool):
                leaf = jax_path(name)
                averages, dtype = self._average(name, wide), DTYPES[tensors[leaf].dtype].numpy
                _add(bad, behind)  # the piece before is hashed and written: they come in order
                behind = [
                    *(pool.submit(_write, *each, leaf, dtype) for each in zip(writings, averages, strict=True)),
                    *(pool.submit(h[name].update, _bytes(p)) for h, p in zip(hashes, pieces, strict=True)),
                ]
                advance(sum(piece.nbytes for piece in pieces))
            _add(bad, behind)
        digests = tuple(map(self._digest, self.snapshots, hashes))
        made = []
        for column, ((_, path), writing) in enumerate(zip(outputs, writings, strict=True)):

            def complete(record: Record, count: int = bad[column]) -> Record:
                assert record.average is not None
                average = dataclasses.replace(record.average, digests=digests)
                return dataclasses.replace(record, average=average, not_finite=count)

            record = writing.finish(complete)
            magnitude = float(abs(self.coefficients[:, column]).sum())
            made.append(Made(path, record, magnitude, magnitude * HALF if self._half() else 0.0))
        return made

    def _tensors(self) -> dict[str, Tensor]:
        """What every average has."""
        wanted = self.request.dtype
        return {
            jax_path(name): Tensor(record.dtype if wanted == "keep" else wanted, record.shape, list)
            for name, record in self.snapshots[-1].tensors.items()
        }

    def _record(self, column: int, std: float, tensors: dict[str, Tensor]) -> Record:
        """All but the digests, which have the length that they will have."""
        average = Average(
            std=float(std), images=self.images, names=tuple(each.path.name for each in self.inputs),
            digests=(tensors_digest({}),) * len(self.inputs), images_seen=tuple(each.images for each in self.inputs),
            stds=tuple(each.std for each in self.inputs), coefficients=tuple(map(float, self.coefficients[:, column])),
            condition=self.condition,
        )  # fmt: skip
        last = describe(self.snapshots[-1])
        return dataclasses.replace(last, source=None, average=average, dtype=stored_dtype(tensors))

    def _pieces(self, pool: ThreadPoolExecutor) -> "Iterator[tuple[str, list[np.ndarray], np.ndarray]]":
        """Tensor by tensor, pieces of it from all snapshots; the next are read while one is worked on.

        As they are stored, each [values], and in what is computed with, all in one [snapshots, values]. They stay until
        the next but one is asked for.
        """
        import numpy as np

        snapshots = len(self.snapshots)
        count = max(AT_ONCE // snapshots, 1)
        wide = np.float32 if self.request.nvlabs_rounding else np.float64
        # Of three, which are used in turn: memory that is new each time would take longer than what is done in it.
        rooms = [(np.empty((snapshots, 8 * count), np.uint8), np.empty((snapshots, count), wide)) for _ in range(3)]

        def read(i: int, place: tuple[str, int, int], room: "tuple[np.ndarray, np.ndarray]"):
            piece = self.snapshots[i].read_part(*place, room[0][i].data)
            room[1][i, : len(piece)] = piece
            return piece

        places = [
            (name, start, min(start + count, size))
            for name, size in ((name, math.prod(record.shape)) for name, record in self.snapshots[-1].tensors.items())
            for start in range(0, size, count)
        ]
        ahead: list[Future] = []
        for number in range(len(places) + 1):
            now = ahead
            if number < len(places):
                ahead = [pool.submit(read, i, places[number], rooms[number % 3]) for i in range(snapshots)]
            if now:
                name, start, stop = places[number - 1]
                pieces = [future.result() for future in now]
                yield name, pieces, rooms[(number - 1) % 3][1][:, : stop - start]

    def _average(self, name: str, pieces: "np.ndarray") -> "np.ndarray":
        """[averages, values] of [snapshots, values], not yet rounded; buffers are those of the last snapshot."""
        import numpy as np

        count = self.coefficients.shape[1]
        if jax_path(name).startswith("constants/"):
            return np.broadcast_to(pieces[-1], (count, pieces.shape[1]))
        if not self.request.nvlabs_rounding:
            return self.coefficients.T @ pieces
        single = self.coefficients.astype(np.float32)
        averages = np.zeros((count, pieces.shape[1]), np.float32)
        for values, row in zip(pieces, single, strict=True):
            for average, coefficient in zip(averages, row, strict=True):
                average += values * coefficient
        return averages

    def _digest(self, snapshot: Snapshot, hashes: dict[str, Any]) -> str:
        return tensors_digest(
            {
                jax_path(name): (record.dtype, record.shape, hashes[name].hexdigest())
                for name, record in snapshot.tensors.items()
            }
        )

    def _half(self) -> bool:
        return any(record.dtype == "float16" for record in self.snapshots[-1].tensors.values())


def _add(counts: list[int], done: list[Future]):
    """Wait for what was begun; what was written is the first of it."""
    for column, future in enumerate(done):
        found = future.result()
        if column < len(counts):
            counts[column] += found


def _write(writing: Writing, average: "np.ndarray", path: str, dtype: Any) -> int:
    """How many values are NaN or infinite."""
    import numpy as np

    with np.errstate(over="ignore"):  # infinite, as NVlabs' would be
        values = np.ascontiguousarray(average.astype(dtype))
    writing.write(path, _bytes(values))
    return not_finite(values)


def _bytes(array: "np.ndarray") -> memoryview:
    return array.view("uint8").data
