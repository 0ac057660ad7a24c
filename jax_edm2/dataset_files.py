"""The files of a dataset, as NVlabs' dataset_tool.py writes it: a folder or ZIP of PNG or NPY files, and dataset.json.

Format: dataset.json is {"labels": [[file name, class], ...]} or {"labels": null}. Nothing here executes or unpickles
anything, and every size is checked before it is allocated. Needs no jax.
"""

import io
import json
import math
import os
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LABELS = "dataset.json"
MOST_FILES, MOST_LABELS = 2**24, 2**20
MOST_JSON = 2**30
MOST_SIDE, MOST_CHANNELS = 4096, 64
NPY_HEADER = 4096


class DatasetError(ValueError):
    """A dataset that is missing, broken, or not one network's: which file, what was found, and what to do."""


class Files(Protocol):
    """The files of a folder or ZIP."""

    path: Path
    names: set[str]  # with / between folders

    def read(self, name: str, most: int) -> bytes:
        """All bytes of a file. Raises: DatasetError if there are more than `most`, or it is broken."""


def open_files(path: Path, *, links: bool = False) -> Files:
    """links: folders that a folder links to are taken with it. Raises: DatasetError, OSError."""
    if path.is_dir():
        return _Folder(path, links)
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path}: is neither a folder nor a ZIP file")
    return _Zip(path)


def read_labels(files: Files) -> dict[str, int] | None:
    """The class of every file that dataset.json names; None if there are no labels. Raises: DatasetError."""
    if LABELS not in files.names:
        return None

    def wrong(what: str) -> DatasetError:
        return DatasetError(f"{files.path}: {LABELS!a} {what}")

    try:
        content = json.loads(files.read(LABELS, MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise wrong(f"is no JSON: {' '.join(str(error).split())[:100]}") from None
    pairs = content.get("labels") if isinstance(content, dict) else content
    if isinstance(content, dict) and pairs is None:
        return None
    form = 'must be {"labels": [["file name", class], ...]}'
    if not isinstance(pairs, list):
        raise wrong(form)
    found: dict[str, int] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int):
            raise wrong(f"{form}, and has {json.dumps(pair)[:100]}")
        if not 0 <= pair[1] < MOST_LABELS:
            raise wrong(f"says that {pair[0]!a:.100} is of class {pair[1]}")
        if pair[0] in found:
            raise wrong(f"names {pair[0]!a:.100} twice")
        found[pair[0]] = pair[1]
    return found


def read_npy(data: bytes) -> np.ndarray | str:
    """float32 or uint8 [C, H, W] of an NPY file, or what is wrong with it."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=NPY_HEADER)
    except (ValueError, KeyError, SyntaxError, EOFError, RecursionError) as error:
        return f"is no NPY file that can be read: {' '.join(str(error).split())[:100]}"
    if dtype.str not in ("<f4", "|u1", "<f2", "<f8") or fortran:
        return f"holds {dtype.str!a:.30}{' in Fortran order' * fortran}, not float32 or uint8"
    if len(shape) < 3 or math.prod(shape[:-2]) > MOST_CHANNELS or max(shape) > MOST_SIDE or not math.prod(shape):
        return f"is {list(shape)}, not [channels, height, width]"
    size, there = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if size != there:
        return f"says {size} bytes of values, and has {there}"
    values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(-1, *shape[-2:])
    if dtype.kind == "f" and not np.isfinite(values).all():
        return "has values that are not finite"
    return values if dtype == np.uint8 else values.astype(np.float32)


class _Folder:
    def __init__(self, path: Path, links: bool):
        self.path, self.names = path, set[str]()
        folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # and what each lies in, device and inode
        while folders:
            within, above = folders.pop()
            status = (path / within).stat()
            here = status.st_dev, status.st_ino
            if here in above:
                raise DatasetError(f"{path}: {within!a:.200} is a link to a folder that it lies in")
            with os.scandir(path / within) as entries:
                for entry in entries:
                    name = f"{within}/{entry.name}" if within else entry.name
                    if entry.is_dir(follow_symlinks=links):
                        folders.append((name, (*above, here)))
                    elif entry.is_file():  # no pipe or device, which may never end
                        self.names.add(name)
            if len(self.names) > MOST_FILES:
                raise DatasetError(f"{path}: has more than {MOST_FILES:,} files")

    def read(self, name: str, most: int) -> bytes:
        try:
            with open(self.path / name, "rb") as file:
                data = file.read(most + 1)
        except OSError as error:
            raise DatasetError(f"{self.path}: {name!a:.200} cannot be read: {error.strerror}") from None
        if len(data) > most:
            raise DatasetError(f"{self.path}: {name!a:.200} has more than {most:,} bytes")
        return data


class _Zip:
    """Its members are read, never extracted. A process that was forked opens the file again."""

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.Lock()
        self._open()
        entries = self._zip.infolist()
        self.names = {entry.filename for entry in entries if not entry.is_dir()}
        if len(entries) > MOST_FILES:
            raise DatasetError(f"{path}: has more than {MOST_FILES:,} files")
        if len(self.names) != sum(not entry.is_dir() for entry in entries):
            raise DatasetError(f"{path}: two files in it have one name")
        for name in self.names:
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise DatasetError(f"{path}: {name!a:.200} is no name of a file in a dataset")

    def _open(self):
        try:
            self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DatasetError(f"{self.path}: is no ZIP file that can be read: {str(error)[:100]}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self.names}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__ |= {**state, "_lock": threading.Lock(), "_process": -1}

    def read(self, name: str, most: int) -> bytes:
        if self._process != os.getpid():
            with self._lock:
                self._open()
        entry = self._zip.getinfo(name)
        if entry.file_size > most:
            raise DatasetError(f"{self.path}: {name!a:.200} has {entry.file_size:,} bytes, and may have {most:,}")
        if entry.flag_bits & 1:
            raise DatasetError(f"{self.path}: {name!a:.200} is encrypted")
        try:
            with self._zip.open(entry) as file:
                data = file.read(most + 1)  # whatever its entry says
        except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, ValueError, zlib.error) as error:
            raise DatasetError(f"{self.path}: {name!a:.200} is broken: {str(error)[:100]}") from None
        if len(data) != entry.file_size:
            raise DatasetError(f"{self.path}: {name!a:.200} is not as long as its entry says")
        return data
