"""Pictures of many seeds, written by threads while the next are drawn; and those that need not be drawn again."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from jax_edm2 import __version__
from jax_edm2.messages import listing

from .errors import SampleError
from .progress import Advance

if TYPE_CHECKING:
    from jax_edm2.generation import Batch

    from .folders import Folder

WRITERS = 4  # threads that write pictures


class Writers:
    """Threads that write pictures, until the `with` body ends: then what is being written is finished, and no more.

    done: the seeds of those that are there. advance: is told of their number, by the thread that calls.
    """

    def __init__(self, folder: "Folder", about: dict[str, Any], advance: Advance):
        self.folder, self.about, self.done = folder, about, list[int]()
        self._advance, self._told = advance, 0
        self._pool = ThreadPoolExecutor(WRITERS)
        self._pending: list[Future] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)
        self._tell()

    def write(self, batch: "Batch", arrays):
        """Begin to write a batch, when the one before is written."""
        self.settle()
        for i, seed in enumerate(batch.seeds):
            note = {"Software": f"edm2-jax {__version__}", "seed": str(seed)}
            note |= {} if batch.classes is None else {"class": str(batch.classes[i])}
            self._pending.append(self._pool.submit(self._write, seed, arrays[i], {**note, "edm2": self.about}))
        self._tell()

    def _write(self, seed: int, array, note: dict[str, Any]):
        self.folder.write(seed, array, note)
        self.done.append(seed)

    def settle(self):
        """Wait for what is being written. Raises: the first error of it."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def _tell(self):
        count = len(self.done)
        self._advance(count - self._told)
        self._told = count


def missing(
    seeds: Sequence[int], folder: "Folder", shape: tuple[int, ...], about: dict[str, Any], *, force: bool = False
) -> list[int]:
    """The seeds whose picture is not there, not whole, or, with `force`, made otherwise.

    Raises: SampleError for pictures that were made otherwise, unless `force`.
    """
    with ThreadPoolExecutor(WRITERS) as pool:
        found = list(pool.map(lambda seed: folder.differences(seed, shape, about), seeds))
    differing = [(seed, differences) for seed, differences in zip(seeds, found, strict=True) if differences]
    if differing and not force:
        seed, differences = differing[0]
        others = f" and {len(differing) - 1:,} more were" if len(differing) > 1 else " was"
        raise SampleError(
            f"{folder.shown(seed)}{others} made otherwise: {listing(differences)}; choose another --outdir, or redraw "
            "with --force"
        )
    return [seed for seed, differences in zip(seeds, found, strict=True) if differences is None or differences]
