"""Outputs that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_or_nothing(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary path beside `target` for a file or folder to be written to, and then moves it there.

    If the body raises, what was written is removed and `target` stays as it was. The body is responsible for fsync
    of what it writes. Raises: FileExistsError if `target` exists, before and after the body, unless `overwrite`.
    """
    if not overwrite:
        _refuse_existing(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if not overwrite:
            _refuse_existing(target)
        _replace(temporary, target)
    finally:
        _remove(temporary)
    _sync_folder(target.parent)


def _refuse_existing(target: Path):
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists")


def _replace(temporary: Path, target: Path):
    if temporary.is_dir() or target.is_dir():  # a folder cannot be renamed over: move the old one out of the way
        retired = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
        _remove(retired)
        if os.path.lexists(target):
            os.rename(target, retired)
        os.rename(temporary, target)
        _remove(retired)
    else:
        os.replace(temporary, target)


def _remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
