"""From pictures to a metric: detectors, one pass over the pictures, and the distance from a reference."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental.multihost_utils import broadcast_one_to_all

from jax_edm2.dataset_files import DatasetError
from jax_edm2.evaluation import Distance, Gathering, Statistics, frechet_distance, merged

from ..detectors import Found, find_detector
from ..devices import gave_up
from ..downloads.cache import sha256
from ..feature_statistics import StatisticsError, read_statistics
from ..progress import Advance, Progress, Warn, silent
from ..sources import Fetching, Location
from .request import Detection, MetricsError, Stopped
from .saved import Saved

Source = Callable[[int], Iterator[np.ndarray]]  # this process's pictures from a number on, uint8 [N, C, H, W]


@dataclass(frozen=True)
class Reference:
    """What metrics are distances from. digest: of its file."""

    name: str
    digest: str
    statistics: Mapping[str, Statistics]


def find_reference(given: str, fetching: Fetching) -> Reference:
    """given: a file's path or URL. Raises: ConverterError, OSError."""
    location = Location(given)
    path = fetching.fetch(given, read_statistics) if location.remote else Path(given)
    return Reference(location.name, sha256(path) if path.is_file() else "", read_statistics(path))


def chosen(metrics: Sequence[str], reference: Reference, warn: Warn) -> list[str]:
    """Those that the reference has statistics of. Raises: MetricsError for none."""
    there = [metric for metric in metrics if metric in reference.statistics]
    if not there:
        raise MetricsError(
            f"{reference.name}: has statistics of {', '.join(sorted(reference.statistics))}, and not of "
            f"{', '.join(metrics)}"
        )
    if len(there) < len(metrics):
        left = ", ".join(metric for metric in metrics if metric not in there)
        warn(f"{reference.name} has no statistics of {left}, which is left out")
    return there


@dataclass(frozen=True)
class Watch:
    """warn: is given a line for each thing that the user should know. progress: of pictures. stop: is asked after
    every batch whether to end with what is done."""

    warn: Warn = warnings.warn
    progress: Progress = silent
    stop: Callable[[], bool] = lambda: False

    def once(self) -> "Watch":
        """The same, which says nothing twice."""
        said: set[str] = set()

        def warn(line: str):
            if line not in said:
                said.add(line)
                self.warn(line)

        return dataclasses.replace(self, warn=warn)


class Measuring:
    """Detectors that are loaded once, for as many passes as there are."""

    def __init__(self, detection: Detection, metrics: Sequence[str]):
        """Raises: ConverterError, OSError."""
        self._detection = detection
        weights = {"fid": detection.inception, "fd_dinov2": detection.dinov2}
        self.found: list[Found] = [find_detector(each, weights[each], detection.fetching) for each in metrics]
        self._gathering: Gathering | None = None
        self.batch = detection.batch * jax.local_device_count()  # pictures that the detectors take at once, here

    def to_json(self) -> dict[str, Any]:
        return {each.detector.metric: {"name": each.name, "sha256": each.sha256} for each in self.found}

    def statistics(
        self, what: str, asked: Mapping[str, Any], total: int, mine: int, source: Source, watch: Watch
    ) -> dict[str, Statistics]:
        """Of `total` pictures in all processes, `mine` of them here, which are called `what`.

        asked: all that the pictures depend on: progress is kept under it, where a folder for that is given.
        Raises: MetricsError, Stopped, OSError.
        """
        process, processes = jax.process_index(), jax.process_count()
        saved = None
        if self._detection.resume is not None:
            key = {"asked": dict(asked), "total": total, "detectors": self.to_json()}
            saved = Saved(self._detection.resume, key, process, processes)
            finished = saved.finished()
            if _says_process_0(finished is not None) != (finished is not None):
                raise MetricsError(f"{self._detection.resume}: is not the same folder for all processes")
            if finished is not None:
                return finished
        gathering = self._begin()
        start = saved.restore(gathering) if saved else 0
        with watch.progress(what, mine) as advance:
            advance(start)
            try:
                self._run(gathering, source(start), saved, watch, advance)
            except DatasetError:
                raise  # which names its file
            except ValueError as error:
                raise MetricsError(f"{what}: {error}") from None
            except JaxRuntimeError as error:
                raise MetricsError(gave_up(error, "try a smaller --batch")) from None
        if gathering.count != mine:
            raise MetricsError(f"{what}: has {gathering.count:,} pictures, and not {mine:,}")
        found = {metric: moments.statistics() for metric, moments in merged(gathering.moments).items()}
        if saved is not None:
            saved.finish(found if process == 0 else None)
        return found

    def _begin(self) -> Gathering:
        """Compiled once for all passes."""
        if self._gathering is None:
            self._gathering = Gathering([each.detector for each in self.found], self._detection.batch)
        self._gathering.clear()
        return self._gathering

    def _run(
        self, gathering: Gathering, pictures: Iterator[np.ndarray], saved: Saved | None, watch: Watch, advance: Advance
    ):
        last, told = time.monotonic(), gathering.count
        with contextlib.closing(pictures):  # type: ignore[type-var]
            for batch in pictures:
                if watch.stop():
                    if saved is not None:
                        saved.save(gathering)
                    raise Stopped(f"{gathering.count:,} pictures are done{f', in {saved.path}' if saved else ''}")
                gathering.add(batch)
                advance(gathering.count - told)
                told = gathering.count
                if saved is not None and time.monotonic() - last >= self._detection.save_every:
                    saved.save(gathering)
                    last = time.monotonic()
        gathering.settle()
        advance(gathering.count - told)


def _says_process_0(here: bool) -> bool:
    """In every process."""
    if jax.process_count() == 1:
        return here
    return bool(np.asarray(broadcast_one_to_all(np.int32(here))))


def distances(found: Mapping[str, Statistics], reference: Reference, warn: Warn) -> dict[str, Distance]:
    """By metric. Raises: StatisticsError for a reference of other detectors."""
    result = {}
    for metric, statistics in found.items():
        other = reference.statistics[metric]
        try:
            result[metric] = frechet_distance(statistics, other)
        except ValueError as error:
            raise StatisticsError(f"{reference.name}: {metric}: {error}") from None
        size, count = statistics.mean.size, statistics.count
        if count is not None and count <= size:
            warn(f"{count:,} pictures do not span the {size:,} features of {metric}: it is far too large")
    return result
