"""What a training shows of itself: the loss by noise level, and figures for people, programs and TensorBoard."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .request import TrainError

STATS = "stats.jsonl"
LOWEST, HIGHEST, BINS = -8.0, 8.0, 64  # of ln(sigma)
_FORMATS = {"Progress/tick": "%.0f", "Progress/kimg": "%.3f", "timestamp": "%.3f"}  # NVlabs'; %g of all others


def no_tally() -> np.ndarray:
    """Sums of losses, and counts of images, by ln(sigma): float32 [2, BINS]."""
    return np.zeros((2, BINS), np.float32)


def tallied(tally: jax.Array, sigma: jax.Array, losses: jax.Array) -> jax.Array:
    """A tally with a step's images added; sigma, losses [N]."""
    place = (jnp.log(sigma) - LOWEST) * (BINS / (HIGHEST - LOWEST))
    place = jnp.clip(place.astype(jnp.int32), 0, BINS - 1)
    return tally + jnp.stack([jnp.zeros(BINS).at[place].add(values) for values in (losses, jnp.ones_like(losses))])


def mean_loss(tally: np.ndarray) -> float:
    """Of all images in a tally; NaN of none."""
    images = float(tally[1].sum())
    return float(tally[0].sum()) / images if images else math.nan


class Statistics:
    """Lines of one run's stats.jsonl, with the fields that NVlabs' training_loop.py writes, and TensorBoard's files."""

    def __init__(self, outdir: Path, tensorboard: bool):
        """Raises: OSError; TrainError if TensorBoard's writer is missing."""
        self._file = open(outdir / STATS, "a")  # noqa: SIM115
        self._board = _board(outdir) if tensorboard else None

    def write(self, images: int, figures: Mapping[str, float]):
        """Figures by name; what is not finite is NaN, as in NVlabs' files."""
        values = {**figures, "timestamp": time.time()}
        parts = (
            f"{json.dumps(name)}: " + (_FORMATS.get(name, "%g") % value if math.isfinite(value) else "NaN")
            for name, value in values.items()
        )
        self._file.write("{" + ", ".join(parts) + "}\n")
        self._file.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, images)
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
        found["Resources/cpu_mem_gb"] = psutil.Process().memory_info().rss / 2**30
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]:
        found["Resources/peak_gpu_mem_gb"] = max(peaks) / 2**30
    if limits := [each["bytes_reserved"] for each in stats if "bytes_reserved" in each]:
        found["Resources/peak_gpu_mem_reserved_gb"] = max(limits) / 2**30
    return found
