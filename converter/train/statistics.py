"""What a training tells of itself: figures for people, for programs and for TensorBoard."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from .clock import Told
from .request import TrainError

STATS = "stats.jsonl"
PROCESS_MEMORY, DEVICE_MEMORY = "Resources/cpu_mem_gb", "Resources/peak_gpu_mem_gb"  # fields
_FORMATS = {"Progress/kimg": "%.3f", "timestamp": "%.3f"}  # NVlabs'; %g of all others


@dataclass(frozen=True)
class Status:
    """Where a training is: images it has seen of how many, the mean loss since the last status, the last learning rate,
    seconds in all, and since the last status; GB of memory, by the name of their field; share_of_peak: of the devices'
    floating-point operations, if their peak is known."""

    images: int
    duration: int
    loss: float
    rate: float
    seconds: float
    told: Told
    used: Mapping[str, float]
    share_of_peak: float | None

    @property
    def seconds_per_kimg(self) -> float:
        return self.told.training / self.told.images * 1e3

    @property
    def waited(self) -> float:
        """The share of the time that was spent waiting for data."""
        return self.told.waiting / self.told.seconds

    @property
    def memory(self) -> float | None:
        """GB: the device's peak if it says so, else the process's."""
        return self.used.get(DEVICE_MEMORY, self.used.get(PROCESS_MEMORY))

    def figures(self) -> dict[str, float]:
        """By the names of NVlabs' training_loop.py, and the seconds that data were waited for."""
        return {
            "Loss/loss": self.loss,
            "Loss/learning_rate": self.rate,
            "Progress/kimg": self.images / 1e3,
            "Timing/total_sec": self.seconds,
            "Timing/sec_per_tick": self.told.seconds,
            "Timing/sec_per_kimg": self.seconds_per_kimg,
            "Timing/maintenance_sec": self.told.maintaining,
            "Timing/data_sec": self.told.waiting,
            **self.used,
        }


class Statistics:
    """Lines of one run's stats.jsonl, as NVlabs' training_loop.py writes them, and TensorBoard's files."""

    def __init__(self, outdir: Path, tensorboard: bool):
        """Raises: OSError; TrainError if TensorBoard's writer is missing."""
        self._file = open(outdir / STATS, "a")  # noqa: SIM115
        self._board = _board(outdir) if tensorboard else None

    def write(self, now: Status):
        """What is not finite is NaN, as in NVlabs' files."""
        figures = now.figures()
        values = {**figures, "timestamp": time.time()}
        parts = (
            f"{json.dumps(name)}: " + (_FORMATS.get(name, "%g") % value if math.isfinite(value) else "NaN")
            for name, value in values.items()
        )
        self._file.write("{" + ", ".join(parts) + "}\n")
        self._file.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, now.images)
            self._board.flush()

    def close(self):
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(outdir: Path) -> Any:
    try:
        import tensorboardX
    except ImportError:
        raise TrainError("--tensorboard needs tensorboardX: pip install tensorboardX") from None
    return tensorboardX.SummaryWriter(str(outdir))


def memory() -> dict[str, float]:
    """GB of this process, and of the device that has most in use, where it says so."""
    found = {}
    try:
        import psutil
    except ImportError:
        pass
    else:
        found[PROCESS_MEMORY] = psutil.Process().memory_info().rss / 2**30
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]:
        found[DEVICE_MEMORY] = max(peaks) / 2**30
    if limits := [each["bytes_reserved"] for each in stats if "bytes_reserved" in each]:
        found["Resources/peak_gpu_mem_reserved_gb"] = max(limits) / 2**30
    return found
