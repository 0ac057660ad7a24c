"""From pictures to moments of their features, on all of a process's devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_edm2.evaluation.detectors import Detector
from jax_edm2.evaluation.moments import Moments

AXIS = "data"


class Gathering:
    """Moments of the features of pictures, taken in as they come; nothing else is kept of them.

    moments: by metric. count: of the pictures that are in them. Every device runs the program that it would run alone,
    on `batch` pictures, however many devices there are and however pictures come: so features do not depend on it.
    """

    def __init__(self, detectors: Sequence[Detector], batch: int = 64, devices: Sequence[jax.Device] | None = None):
        """batch: pictures per device. devices: of this process; all by default. Raises: ValueError."""
        if batch < 1 or not detectors:
            raise ValueError(f"a batch of {batch} for {len(detectors)} detectors gathers nothing")
        self._sizes = {each.metric: each.size for each in detectors}
        self.clear()
        self._mesh = Mesh(np.asarray(devices or jax.local_devices()), (AXIS,))
        self._size = batch * self._mesh.size
        everywhere, self._split = (NamedSharding(self._mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
        self._params = {each.metric: jax.device_put(each.params, everywhere) for each in detectors}
        self._features = {each.metric: self._parallel(each) for each in detectors}

    def clear(self):
        """Begin anew, with no pictures; nothing is compiled again."""
        self.moments = {metric: Moments(size) for metric, size in self._sizes.items()}
        self.count = 0
        self._pending: list[np.ndarray] = []  # pictures that do not fill a batch yet
        self._running: tuple[int, dict[str, jax.Array]] | None = None

    def _parallel(self, detector: Detector) -> Any:
        split, specs = PartitionSpec(AXIS), (PartitionSpec(), PartitionSpec(AXIS))
        return jax.jit(
            jax.shard_map(detector.features, mesh=self._mesh, in_specs=specs, out_specs=split, check_vma=False)
        )

    def add(self, pictures: np.ndarray):
        """Take in uint8 pictures [N, C, H, W], C 3, or 1 of grey ones. The last batch runs while others are made.

        Raises: ValueError for anything else.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
            raise ValueError(
                f"pictures are uint8 [N, 3, H, W], or [N, 1, H, W] of grey ones; these are {pictures.dtype} "
                f"{list(pictures.shape)}"
            )
        if self._pending and self._pending[0].shape[2:] != pictures.shape[2:]:
            raise ValueError(f"pictures are of {list(self._pending[0].shape[2:])} and of {list(pictures.shape[2:])}")
        self._pending.append(np.broadcast_to(pictures, (len(pictures), 3, *pictures.shape[2:])))
        while sum(map(len, self._pending)) >= self._size:
            self._run(self._size)

    def settle(self):
        """Wait until all pictures are in the moments; what does not fill a batch is filled up, and masked."""
        while waiting := sum(map(len, self._pending)):
            self._run(min(waiting, self._size))
        self._take_in()

    def _run(self, count: int):
        """Begin with the next pictures, and take in what was begun before."""
        waiting = np.concatenate(self._pending)
        pictures, rest = waiting[:count], waiting[count:]
        self._pending = [rest] if len(rest) else []
        filled = np.pad(pictures, [(0, self._size - count), (0, 0), (0, 0), (0, 0)], mode="edge")
        with jax.set_mesh(self._mesh):  # whatever mesh the caller works on
            placed = jax.device_put(filled, self._split)
            found = {metric: run(self._params[metric], placed) for metric, run in self._features.items()}
        self._take_in()
        self._running = count, found

    def _take_in(self):
        if self._running is None:
            return
        (count, found), self._running = self._running, None
        for metric, features in found.items():
            self.moments[metric].add(np.asarray(features), count)
        self.count += count


def merged(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """The moments of all processes, on each of them, when each calls this. Sums are exact to float64's rounding."""
    if jax.process_count() == 1:
        return dict(moments)
    from jax.experimental.multihost_utils import broadcast_one_to_all

    found = {}
    for metric, own in moments.items():
        both = Moments(own.size)
        for process in range(jax.process_count()):
            words = broadcast_one_to_all(own.packed().view(np.uint32), is_source=process == jax.process_index())
            both = both + Moments.unpacked(np.asarray(words).view(np.float64), own.size)
        found[metric] = both
    return found
