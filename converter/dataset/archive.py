"""The folder or ZIP that a dataset is written to: it is there whole, or not at all."""

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jax_edm2.dataset_files import LABELS
from jax_edm2.files import Target, whole_or_nothing

from ..progress import Advance
from .source import DatasetToolError

MODE = 0o644  # of files that are unpacked

Write = Callable[[str, bytes], object]


@dataclass(frozen=True)
class Entry:
    """A file, and its class if there is one."""

    name: str
    content: bytes
    label: int | None


@dataclass(frozen=True)
class Report:
    """What was written. skipped: pictures that were too small. classes: that the labels are of, 0 without labels."""

    source: Path
    dest: Target
    images: int
    skipped: int
    classes: int
    shape: tuple[int, ...]  # [C, H, W] of every image
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "source": str(self.source), "dest": str(self.dest), "shape": list(self.shape)}


PNG, NPY = "img{:08d}.png", "img-mean-std-{:08d}.npy"


def numbered(number: int, kind: str) -> str:
    """The name of a file, of pictures or of latents. kind: PNG or NPY."""
    return f"{number // 1000:05d}/{kind.format(number)}"


def write_dataset(dest: Target, entries: Iterable[Entry | None], advance: Advance, *, force: bool) -> tuple[int, int]:
    """Write entries, None for those that are left out, and dataset.json: how many there are, and classes.

    dest: a ZIP by its name, which `force` replaces, else a folder that is empty or not there; in a store, a ZIP. Where
    one entry has no label, no label is written. advance: is told of every entry.
    Raises: DatasetToolError, OSError; FileExistsError for a ZIP that is there.
    """
    labels: list[tuple[str, int]] | None = []
    count = 0
    with _archive(dest, force) as write:
        for entry in entries:
            if entry is not None:
                write(entry.name, entry.content)
                count += 1
                if entry.label is None:
                    labels = None
                elif labels is not None:
                    labels.append((entry.name, entry.label))
            advance(1)
        if not count:
            raise DatasetToolError(f"{dest}: nothing is written: all pictures are too small; lower --resolution")
        write(LABELS, json.dumps({"labels": labels}).encode())
    return count, max((label + 1 for _, label in labels or ()), default=0)


@contextlib.contextmanager
def _archive(dest: Target, force: bool) -> Iterator[Write]:
    if isinstance(dest, str):
        if not dest.endswith(".zip"):
            raise DatasetToolError(f"{dest}: in a store we write one file: let its name end in .zip")
        with whole_or_nothing(dest, overwrite=force) as path, _archive(path, force) as write:
            yield write
        return
    dest = dest.absolute()
    packed = dest.suffix == ".zip"
    if packed and dest.is_dir():
        raise DatasetToolError(f"{dest}: is a folder, and --dest with the ending .zip is a file")
    if not packed and dest.is_dir() and any(dest.iterdir()):
        raise DatasetToolError(f"{dest}: is a folder that is not empty; choose another --dest")
    if not packed and os.path.lexists(dest) and not dest.is_dir():
        raise DatasetToolError(f"{dest}: is a file, and no folder; a --dest with the ending .zip is a ZIP file")
    with _parents(dest), whole_or_nothing(dest, overwrite=force or not packed) as temporary:
        if packed:
            with open(temporary, "xb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    yield lambda name, content: _add(archive, name, content)
                file.flush()
                os.fsync(file.fileno())
        else:
            yield lambda name, content: _put(temporary / name, content)
            os.sync()  # of so many files, at once


def _add(archive: zipfile.ZipFile, name: str, content: bytes):
    """Not compressed, and without the time: of equal pictures equal archives are made."""
    info = zipfile.ZipInfo(name)
    info.external_attr = MODE << 16
    archive.writestr(info, content)


def _put(path: Path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Folders above a path are made, and removed if nothing comes of them."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise
