"""Ctrl-C and SIGTERM as a wish that a command fulfils when it can."""

import contextlib
import os
import signal
from typing import Self

from .interrupts import leave_at_once


class Asked:
    """In the `with` body, the first Ctrl-C or SIGTERM is noted and answered with a line; a second Ctrl-C ends the
    process. Called, it says whether there was one; `signal` says which."""

    def __init__(self, name: str, answer: str):
        """name: the command's. answer: what it will do."""
        self.signal: int | None = None
        self._name, self._answer = name, f"{name}: {answer}\n".encode()

    def __call__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        numbers = [signal.SIGTERM] + [signal.SIGINT] * (signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame):
        self.signal = number
        if number == signal.SIGINT:
            leave_at_once(self._name)
        with contextlib.suppress(OSError):
            os.write(2, self._answer)  # whatever print was interrupted: Python's own streams may not be entered twice
