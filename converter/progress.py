"""What a call into the library tells its caller while it works. The library itself prints nothing of that."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Warn = Callable[[str], object]  # is given one line; by default the calls use Python's own `warnings.warn`
Advance = Callable[[int], object]  # is told how much more is done
Progress = Callable[[str, int], AbstractContextManager[Advance]]  # of what is to be done, and how much it is in all


@contextlib.contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """A Progress that shows nothing."""
    yield lambda count: None
