"""Checkpoints of a training: written in the background, whole or not at all, and found again.

Each is a training state of `jax_edm2.save_training_state` in an orbax folder, training-state-IMAGES, which
edm2-convert, edm2-verify and `load_training_state` take too. Its digest is checked when training goes on from it.
"""

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jax_edm2.files import scratch
from jax_edm2.tensors import CheckpointError
from jax_edm2.training_state import TrainingState, save_training_state

from ..progress import Warn
from .request import TrainError

Found = TypeVar("Found")
_NAME = re.compile(r"training-state-(?P<images>\d{10})")


class Checkpoints:
    """Those of one folder. Files are written in a thread, one checkpoint at a time."""

    def __init__(self, folder: Path, keep: int, warn: Warn):
        """keep: how many of the newest stay; 0 for all."""
        self._folder, self._keep, self._warn = folder, keep, warn
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None

    def path(self, images: int) -> Path:
        return self._folder / f"training-state-{images:010d}"

    def found(self) -> list[Path]:
        """The newest first."""
        names = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted((path for path in names if _NAME.fullmatch(path.name)), reverse=True)

    def newest(self, load: Callable[[Path], Found]) -> tuple[Path, Found] | None:
        """The newest that `load` finds sound, and what it gives; None if there is none at all.

        Raises: TrainError if there are some and none is sound.
        """
        paths = self.found()
        for path in paths:
            try:
                return path, load(path)
            except CheckpointError as error:
                self._warn(f"{error}; an older checkpoint is taken, if there is one")
        if paths:
            raise TrainError(f"{self._folder}: no checkpoint in it is sound; remove them to begin anew")
        return None

    def save(self, images: int, state: TrainingState):
        """Begin to write a checkpoint of arrays that are on the host and stay as they are. Waits for the one before."""
        self.wait()
        self._writing = threading.Thread(target=self._write, args=(self.path(images), state))
        self._writing.start()

    def wait(self) -> Exception | None:
        """Until the last one is written; why it could not be, of which the user has been told."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        return self._failure

    def sweep(self):
        """Remove what a process that was killed has left half written."""
        for path in self._folder.glob(".training-state-*"):
            if match := re.match(rf"\.({_NAME.pattern})\.", path.name):
                scratch(self._folder / match[1])

    def _write(self, path: Path, state: TrainingState):
        self._failure = None
        try:
            save_training_state(path, state, overwrite=True)
            for old in self.found()[self._keep :] if self._keep else ():
                shutil.rmtree(old, ignore_errors=True)
        except (CheckpointError, OSError) as error:
            self._failure = error
            self._warn(f"{path}: was not written: {error}; training goes on, and earlier checkpoints are as they were")
