"""Where the time of a training goes."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """Since the last time: images, seconds in all, in steps, waiting for data (of the steps'), and beside the steps."""

    images: int
    seconds: float
    training: float
    waiting: float
    maintaining: float


class Clock:
    """Where the time of a training goes: to steps, to waiting for data, and to what is done beside."""

    def __init__(self, images: int):
        self._images = images
        self._start()

    def _start(self):
        self._began, self._waiting, self._maintaining = time.perf_counter(), 0.0, 0.0

    def since(self) -> float:
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - began

    @contextlib.contextmanager
    def maintaining(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._maintaining += time.perf_counter() - began

    def tell(self, images: int) -> Told:
        seconds = self.since()
        told = Told(images - self._images, seconds, seconds - self._maintaining, self._waiting, self._maintaining)
        self._images = images
        self._start()
        return told
