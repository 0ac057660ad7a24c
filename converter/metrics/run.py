"""Metrics of pictures, of a network's samples, and of averages of every length.

report = gen(GenRequest(draw=DrawRequest(net="digits.safetensors"), ref="digits.pkl", num=1000))
print(report.best)  # {"fid": ...}
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from jax_edm2 import strict_json
from jax_edm2.evaluation import Distance
from jax_edm2.files import is_there, whole_or_nothing
from jax_edm2.generation import share
from jax_edm2.training.dataset import DatasetError, ImageDataset

from ..drawing import Prepared, exchanged, prepare
from ..drawing_request import resolve
from ..feature_statistics import write_statistics
from ..phema import PhemaRequest, reconstruct
from ..threads import ahead
from .measuring import Measuring, Reference, Watch, chosen, distances, find_reference
from .request import CalcRequest, GenRequest, MetricsError, RefRequest, SweepRequest


@dataclass(frozen=True)
class Result:
    """Of one set of pictures. pictures: what they are. seconds: that their features took; few where that was before."""

    pictures: dict[str, Any]
    scores: dict[str, Distance]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        scores = {metric: {"value": each.value, "rounding": each.error} for metric, each in self.scores.items()}
        return {**self.pictures, **scores, "seconds": self.seconds}


@dataclass(frozen=True)
class Report:
    """num: pictures in each of the results. about: of what draws, where there is a network."""

    num: int
    results: list[Result]
    reference: Reference
    detectors: dict[str, Any]
    about: dict[str, Any] | None = None

    @property
    def best(self) -> dict[str, float]:
        """The least of every metric."""
        metrics = self.results[0].scores
        return {metric: min(each.scores[metric].value for each in self.results) for metric in metrics}

    def to_json(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "num": self.num,
            "results": [each.to_json() for each in self.results],
            "reference": {"name": self.reference.name, "sha256": self.reference.digest},
            "detectors": self.detectors,
            "about": self.about,
        }


def calc(request: CalcRequest, watch: Watch | None = None) -> Report:
    """Of pictures in a folder or ZIP. Raises: MetricsError, DatasetError, ConverterError, Stopped, OSError."""
    watch = watch or Watch()
    reference = find_reference(request.ref, request.detection.fetching)
    metrics = chosen(request.detection.metrics, reference, watch.warn)
    dataset = _pictures(request.images, request.num, request.seed)
    if len(dataset) < request.num:
        raise MetricsError(
            f"{request.images}: has {len(dataset):,} pictures, and {request.num:,} are wanted: --num takes fewer"
        )
    measuring = Measuring(request.detection, metrics)
    pictures = {"images": str(request.images), "seed": request.seed}
    began = time.perf_counter()
    found = _of_dataset(measuring, dataset, {**pictures, "num": request.num}, request.workers, watch)
    seconds = time.perf_counter() - began
    result = Result(pictures, distances(found, reference, watch.warn), seconds)
    return Report(request.num, [result], reference, measuring.to_json())


def reference(request: RefRequest, watch: Watch | None = None) -> dict[str, Any]:
    """Write a dataset's statistics, and say what they are of. Raises: as `calc`; FileExistsError without `force`."""
    watch = watch or Watch()
    if not request.force and is_there(request.dest):
        raise FileExistsError(f"{request.dest}: is there already")
    dataset = _pictures(request.data, request.num, request.seed)
    measuring = Measuring(request.detection, request.detection.metrics)
    asked = {"images": str(request.data), "seed": request.seed, "num": len(dataset)}
    began = time.perf_counter()
    found = _of_dataset(measuring, dataset, asked, request.workers, watch)
    seconds = time.perf_counter() - began
    if jax.process_index() == 0:
        if isinstance(request.dest, Path):
            request.dest.parent.mkdir(parents=True, exist_ok=True)
        write_statistics(request.dest, found, overwrite=request.force)
    return {"dest": str(request.dest), **asked, "seconds": seconds, "detectors": measuring.to_json()}


def gen(request: GenRequest, watch: Watch | None = None) -> Report:
    """Of a network's samples, none of which is written. Raises: as `calc`, UsageError, CheckpointError."""
    watch = (watch or Watch()).once()
    resolved = resolve(request.draw)
    reference = find_reference(request.ref, request.detection.fetching)
    metrics = chosen(request.detection.metrics, reference, watch.warn)
    measuring = Measuring(request.detection, metrics)
    with jax.default_matmul_precision("highest"):
        prepared = prepare(request.draw, resolved, watch.warn)
        results = _repeats(measuring, prepared, request.draw.batch, request, reference, watch)
    return Report(request.num, results, reference, measuring.to_json(), prepared.about)


def sweep(request: SweepRequest, watch: Watch | None = None) -> dict[str, Any]:
    """Of averages of every length and with every guidance weight: results.json and a plot, in `outdir`.

    What is done is kept there, whatever ends it. Raises: as `gen`, PhemaError.
    """
    from .plot import plot

    watch = (watch or Watch()).once()
    averages = request.outdir / "averages"
    wanted = PhemaRequest(
        request.indir, averages, request.outstd, request.outkimg, skip=True, fetching=request.draw.fetching
    )
    reference = find_reference(request.ref, request.detection.fetching)
    metrics = chosen(request.detection.metrics, reference, watch.warn)
    paths = _averages(wanted, watch)
    detection = request.detection
    if detection.resume is None:
        detection = dataclasses.replace(detection, resume=request.outdir / "progress")
    measuring = Measuring(detection, metrics)
    rows: list[dict[str, Any]] = []
    with jax.default_matmul_precision("highest"):
        for weight in request.guidance:
            for std, path in zip(sorted(request.outstd), paths, strict=True):
                draw = dataclasses.replace(request.draw, net=path, guidance=weight)
                if weight == 1:
                    draw = dataclasses.replace(draw, gnet=None, unconditional=False, interval=None)
                resolved = resolve(draw)
                if path == paths[0]:
                    prepared = prepare(draw, resolved, watch.warn)
                else:
                    prepared = exchanged(prepared, draw, resolved.net, watch.warn)
                results = _repeats(measuring, prepared, draw.batch, request, reference, watch, f"std {std:.3f}")
                rows += [{"std": std, "guidance": weight, **each.to_json()} for each in results]
                if jax.process_index() == 0:
                    _write_json(request.outdir / "results.json", rows)
    if jax.process_index() == 0:
        plot(rows, metrics, request.outdir / "sweep.png")
    return {"results": rows, "plot": str(request.outdir / "sweep.png"), "num": request.num}


def _averages(request: PhemaRequest, watch: Watch) -> list[str]:
    """By length. Of several processes the first makes them, and the others find them. Raises: PhemaError, OSError."""
    if jax.process_index():
        sync_global_devices("averages")
    report = reconstruct(request, warn=watch.warn, progress=watch.progress)
    if jax.process_index() == 0 and jax.process_count() > 1:
        sync_global_devices("averages")
    return sorted(map(str, [*(made.path for made in report.made), *report.skipped]))


# Pictures


def _pictures(path: Path, num: int | None, seed: int) -> ImageDataset:
    """Raises: DatasetError, OSError."""
    dataset = ImageDataset(path, labels=False, most=num, seed=seed)
    if dataset.dtype != np.uint8 or dataset.shape[0] not in (1, 3):
        latents = "; edm2-dataset decode makes pictures of latents" if dataset.dtype != np.uint8 else ""
        raise DatasetError(f"{path}: holds {dataset.dtype} {list(dataset.shape)}, and no RGB or grey pictures{latents}")
    if len(dataset) < 2:
        raise DatasetError(f"{path}: has one picture, and statistics are of two at least")
    return dataset


def _of_dataset(measuring: Measuring, dataset: ImageDataset, asked: dict[str, Any], workers: int, watch: Watch) -> Any:
    mine = share(range(len(dataset)), jax.process_index(), jax.process_count())
    asked = {**asked, "shape": list(dataset.shape), "names": len(dataset.names)}

    def source(start: int) -> Iterator[np.ndarray]:
        pictures = ahead(lambda number: dataset[number][0], mine[start:], max(workers, 1))
        while batch := list(itertools.islice(pictures, measuring.batch)):
            yield np.stack(batch)

    return measuring.statistics(dataset.path.name, asked, len(dataset), len(mine), source, watch)


def _repeats(
    measuring: Measuring, prepared: Prepared, batch: int, request: GenRequest, reference: Reference,
    watch: Watch, what: str | None = None,
) -> list[Result]:  # fmt: skip
    results = []
    for repeat in range(request.repeats):
        first = request.seed + repeat * request.num
        began = time.perf_counter()
        found = _of_network(measuring, prepared, range(first, first + request.num), batch, watch, what)
        seconds = time.perf_counter() - began
        results.append(Result({"seed": first}, distances(found, reference, watch.warn), seconds))
    return results


def _of_network(
    measuring: Measuring, prepared: Prepared, seeds: Sequence[int], batch: int, watch: Watch, what: str | None
) -> Any:
    mine = share(seeds, jax.process_index(), jax.process_count())
    asked = {"about": prepared.about, "first": seeds[0]}

    def source(start: int) -> Iterator[np.ndarray]:
        for drawn in prepared.generator(mine[start:], batch):
            prepared.latents(drawn)  # which must be finite
            yield np.asarray(drawn.pictures)[: len(drawn.seeds)]

    return measuring.statistics(what or prepared.name, asked, len(seeds), len(mine), source, watch)


def _write_json(path: Path, value: Any):
    with whole_or_nothing(path, overwrite=True) as temporary:
        temporary.write_text(strict_json.dumps(value) + "\n")
