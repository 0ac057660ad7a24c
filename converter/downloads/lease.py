"""Who fetches a file, where several processes want it: the others wait, and take over if he dies."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from .cache_files import check_name

LEASE = 20.0  # seconds after which a process that shows no sign of life is no longer waited for


@contextlib.contextmanager
def lease(path: Path) -> Iterator[None]:
    """Whoever holds it fetches. It ends with its process, or after LEASE seconds without a sign of life."""
    check_name(path)  # filelock follows no link, but takes one for a lock that was left behind
    file = SoftFileLease(path, lease_duration=LEASE, poll_interval=0.1)
    told = not sys.stderr.isatty()
    while True:
        before = _stamp(path)
        try:
            file.acquire(timeout=2)
            break
        except Timeout:
            if before == _stamp(path) and before is not None and before[0] == 0:
                path.unlink(missing_ok=True)  # of a process that was killed while it made it, which nobody can tell
            elif not told:
                told = True
                print("another process is fetching it; waiting for that", file=sys.stderr)
    try:
        yield
    finally:
        file.release()


def _stamp(path: Path) -> tuple[int, int] | None:
    """A file's size and time of change."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        return found.st_size, found.st_mtime_ns
    return None
