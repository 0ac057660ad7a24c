"""Progress that outlives a process: moments of pictures so far, and statistics that are done, in a folder.

KEY.I-of-N.safetensors   of process I of N: `done`, its pictures so far, and the moments of each metric
KEY.pkl                  the statistics, when all is done, as NVlabs' tool reads them

KEY is a digest of what is asked, so that nothing of anything else is ever gone on with.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.files import whole_or_nothing
from jax_edm2.safetensors_format import File, FormatError

from ..feature_statistics import read_statistics, write_statistics
from .request import MetricsError

if TYPE_CHECKING:
    from jax_edm2.evaluation import Gathering, Statistics

KEY_LENGTH = 20


class Saved:
    """Of one thing that is asked, for one of `count` processes."""

    def __init__(self, folder: Path, asked: dict[str, Any], index: int, count: int):
        """Raises: OSError for a folder that cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
        self.path, self._all = folder / f"{key}.{index}-of-{count}.safetensors", folder / f"{key}.pkl"

    def finished(self) -> "dict[str, Statistics] | None":
        """Raises: StatisticsError for a file that is damaged."""
        return read_statistics(self._all) if self._all.exists() else None

    def finish(self, statistics: "dict[str, Statistics] | None"):
        """Of all processes, for the one that writes them; others only remove what is theirs. Raises: OSError."""
        if statistics is not None:
            write_statistics(self._all, statistics, overwrite=True)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def save(self, gathering: "Gathering"):
        """What is in the moments by now. Raises: OSError."""
        from safetensors.numpy import save_file

        packed = {metric: moments.packed() for metric, moments in gathering.moments.items()}
        with whole_or_nothing(self.path, overwrite=True) as temporary:
            save_file(packed, temporary, {"done": str(gathering.count)})

    def restore(self, gathering: "Gathering") -> int:
        """How many pictures are done, whose moments `gathering` gets. Raises: MetricsError for a damaged file."""
        from jax_edm2.evaluation import Moments

        if not self.path.exists():
            return 0
        try:
            with File(self.path) as file:
                dtypes = {entry.dtype for entry in file.entries.values()}
                if file.entries.keys() != gathering.moments.keys() or dtypes != {"F64"}:
                    raise ValueError("holds other moments than these")
                found = {
                    metric: Moments.unpacked(file.array(metric), own.size) for metric, own in gathering.moments.items()
                }
                done = file.metadata.get("done", "")
        except (FormatError, ValueError) as error:
            raise MetricsError(f"{self.path}: {error}; remove it, to begin anew") from None
        if {str(moments.count) for moments in found.values()} != {done}:
            raise MetricsError(f"{self.path}: is of {done:.20} pictures, and its moments are not; remove it")
        gathering.moments, gathering.count = found, int(done)
        return gathering.count
