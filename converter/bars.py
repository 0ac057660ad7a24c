"""How far something is, on standard error: a bar where that is a terminal, else a line now and then."""

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds, between lines where there is no terminal
TICK = 1.0  # and between what is drawn on one, while nothing else happens
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} left"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {elapsed} so far"


class Bar(tqdm):
    """A tqdm bar that leaves nothing behind, and says something where there is no terminal, too."""

    def __init__(self, *, desc: str, unit: str, total: int | None = None, silent: bool = False, **more: Any):
        """silent: says nothing at all."""
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._said = time.monotonic()
        silent = silent or sys.stderr is None
        super().__init__(desc=desc, unit=unit, total=total, disable=silent, leave=False, file=sys.stderr, **more)
        self._closed = threading.Event()
        if not silent:
            threading.Thread(target=self._tick, daemon=True).start()

    def display(self, msg: str | None = None, pos: int | None = None):
        if self._terminal:
            super().display(msg, pos)
        elif msg != "" and time.monotonic() - self._said >= EVERY:  # an empty one would wipe the bar away
            self._said = time.monotonic()
            self.bar_format = LINE if self.total else LINE_WITHOUT_TOTAL
            print(str(self) if msg is None else msg, file=sys.stderr, flush=True)

    def clear(self, *args: Any, **kwargs: Any):
        if self._terminal:
            super().clear(*args, **kwargs)

    def close(self):
        if hasattr(self, "_closed"):  # tqdm closes what it could not make
            self._closed.set()
        super().close()

    def _tick(self):
        """What takes long before it is done in part, a compilation say, is seen to go on."""
        while not self._closed.wait(TICK if self._terminal else min(TICK, EVERY)):
            self.refresh()
