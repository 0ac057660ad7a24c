"""The work of post-hoc EMA: averages of many snapshots, tensor by tensor, of which every byte is read once.

A thread takes a tensor and goes through it in pieces that fit the processor's cache: it reads the same piece of all
snapshots, hashes it, makes all averages of it as one product of matrices in float64, rounds them once, and writes them.
When a tensor is done a line in a journal says so, so that what was killed goes on from there.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jax_edm2.dtypes import DTYPES, not_finite
from jax_edm2.record import Record, tensors_digest
from jax_edm2.tensors import Hashes

from .errors import ConverterError
from .names import jax_path
from .progress import Advance
from .threads import cpus
from .weights import Weights

if TYPE_CHECKING:
    import numpy as np

PIECE = 2**20  # values that a thread has at once, of all snapshots and averages together
MOST_THREADS = 8


class BusyError(ConverterError):
    """Somebody else is making these averages."""


class Output(Protocol):
    """A file that tensors are written to, piece by piece, of each tensor in order."""

    hashes: Hashes

    def write(self, name: str, chunk: memoryview): ...

    def finish(self, complete: Callable[[Record], Record]) -> Record: ...


@dataclass(frozen=True)
class Averages:
    """What is computed. coefficients: float64 [snapshots, averages]. dtypes: of every tensor that is written.

    nvlabs: products and sums are rounded to float32, in the order of the snapshots. Buffers are the last snapshot's.
    """

    snapshots: Sequence[Weights]
    coefficients: "np.ndarray"
    dtypes: dict[str, str]
    nvlabs: bool

    def write(self, outputs: Sequence[Output], journal: "Journal", advance: Advance):
        """All tensors that `journal` does not have. Raises: SnapshotError, OSError."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        tensors = self.snapshots[-1].tensors
        for name in sorted(tensors, key=lambda name: -tensors[name].data.length):  # the last to be done are short
            if (done := journal.tensors.get(name)) is None:
                waiting.put(name)
                continue
            advance(tensors[name].data.length * len(self.snapshots))
            for output, sha256 in zip(outputs, done.outputs, strict=True):
                output.hashes.restore(jax_path(name), sha256)
        ended = threading.Event()  # by an error, or by the user

        def work():
            room = _Room(self)
            while not ended.is_set():
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                if (done := self._tensor(name, outputs, room, advance, ended)) is not None:
                    journal.add(name, done)

        threads = min(cpus(), MOST_THREADS)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for future in [pool.submit(work) for _ in range(threads)]:
                    future.result()
            finally:
                ended.set()

    def _tensor(
        self, name: str, outputs: Sequence[Output], room: "_Room", advance: Advance, ended: threading.Event
    ) -> "Done | None":
        import numpy as np

        record, leaf = self.snapshots[-1].tensors[name], jax_path(name)
        size, kind = record.data.length // DTYPES[record.dtype].size, DTYPES[self.dtypes[name]].numpy
        hashes = [hashlib.sha256() for _ in self.snapshots]
        bad = [0] * len(outputs)
        for start in range(0, size, room.count):
            if ended.is_set():
                return None
            stop = min(start + room.count, size)
            for snapshot, sha, raw, wide in zip(self.snapshots, hashes, room.raw, room.wide, strict=True):
                piece = snapshot.read_part(name, start, stop, raw.data)
                sha.update(piece.view("uint8").data)
                wide[: stop - start] = piece
            averages = self._average(leaf, room, stop - start)
            with np.errstate(over="ignore"):  # infinite, as NVlabs' would be
                for column, (output, average) in enumerate(zip(outputs, averages, strict=True)):
                    rounded = room.rounded(stop - start, kind)
                    np.copyto(rounded, average, casting="unsafe")
                    bad[column] += not_finite(rounded)
                    output.write(leaf, rounded.view("uint8").data)
            advance((stop - start) * DTYPES[record.dtype].size * len(self.snapshots))
        return Done([sha.hexdigest() for sha in hashes], [output.hashes.of(leaf) for output in outputs], bad)

    def _average(self, leaf: str, room: "_Room", count: int) -> "np.ndarray":
        """[averages, values], not yet rounded."""
        import numpy as np

        pieces, averages = room.wide[:, :count], room.averages[:, :count]
        if leaf.startswith("constants/"):
            averages[:] = pieces[-1]
        elif not self.nvlabs:
            np.matmul(self.coefficients.T, pieces, out=averages)
        else:
            averages[:] = 0
            for values, row in zip(pieces, self.coefficients.astype(np.float32), strict=True):
                for average, coefficient in zip(averages, row, strict=True):
                    average += values * coefficient
        return averages


class _Room:
    """A thread's memory, which is used again: memory that is new each time takes longer than what is done in it."""

    def __init__(self, work: Averages):
        import numpy as np

        snapshots, averages = work.coefficients.shape
        sizes = [DTYPES[record.dtype].size for record in work.snapshots[-1].tensors.values()]
        wide = np.float32 if work.nvlabs else np.float64
        self.count = max(PIECE // (snapshots + averages), 1)
        self.raw = np.empty((snapshots, max(sizes) * self.count), np.uint8)
        self.wide = np.empty((snapshots, self.count), wide)
        self.averages = np.empty((averages, self.count), wide)
        self._rounded = np.empty(8 * self.count, np.uint8)

    def rounded(self, count: int, kind: "np.dtype") -> "np.ndarray":
        return self._rounded[: count * kind.itemsize].view(kind)


@dataclass(frozen=True)
class Done:
    """A tensor. inputs, outputs: sha256 of its bytes in every snapshot and average; bad: in every average, how many
    values are NaN or infinite."""

    inputs: list[str]
    outputs: list[str]
    bad: list[int]


@dataclass
class Journal:
    """What has been done, in a folder with the files that are not yet finished; it is for one process at a time.

    tensors: by NVlabs' name. placed: records of the averages that are where they belong, by column. placing: columns
    of those that are there if anything is.
    """

    folder: Path
    tensors: dict[str, Done] = field(default_factory=dict)
    placed: dict[int, Record] = field(default_factory=dict)
    placing: set[int] = field(default_factory=set)
    _file: Any = None
    _lock: Any = field(default_factory=threading.Lock)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, key: str) -> "Iterator[Journal]":
        """The journal of the work that `key` stands for: what another one left is removed.

        What is in it counts until the machine starts anew: then nobody knows what of the files has reached the disk.
        The folder stays if the process is killed, or interrupted. Raises: BusyError, OSError.
        """
        folder.mkdir(exist_ok=True)
        journal = cls(folder)
        with open(folder / "journal", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(f"{folder}: another edm2-phema is at work here") from None
            journal._file = file
            beginning = {"key": key, "boot": _boot()}
            if not journal._read(beginning):
                for path in folder.iterdir():
                    if path.name != "journal":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                file.truncate(0)
                journal._line(beginning)
            try:
                yield journal
            except KeyboardInterrupt:
                raise
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        shutil.rmtree(folder, ignore_errors=True)

    def _read(self, beginning: dict[str, Any]) -> bool:
        """Whether it is of this work. A last line that is not whole was not written."""
        self._file.seek(0)
        lines = self._file.read().split("\n")[:-1]
        try:
            if not lines or json.loads(lines[0]) != beginning:
                return False
            for line in map(json.loads, lines[1:]):
                if "placed" in line:
                    self.placed[line["placed"]] = Record.from_json(line["record"])
                elif "placing" in line:
                    self.placing.add(line["placing"])
                else:
                    name = line.pop("tensor")
                    self.tensors[name] = Done(**line)
        except (ValueError, KeyError, TypeError):
            self.tensors.clear()
            self.placed.clear()
            self.placing.clear()
            return False
        return True

    def add(self, name: str, done: Done):
        with self._lock:
            self.tensors[name] = done
            self._line({"tensor": name, **dataclasses.asdict(done)})

    def begin_to_place(self, column: int):
        """What is from now on where an average belongs is that average."""
        self.placing.add(column)
        self._line({"placing": column})

    def place(self, column: int, record: Record):
        self.placed[column] = record
        self._line({"placed": column, "record": record.to_json()})

    def _line(self, value: dict[str, Any]):
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def digest(self, number: int, weights: Weights) -> str:
        """Of a snapshot, when all tensors are done."""
        return tensors_digest(
            {
                jax_path(name): (record.dtype, record.shape, self.tensors[name].inputs[number])
                for name, record in weights.tensors.items()
            }
        )


def _boot() -> str:
    """What changes when the machine starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(os.getpid())
