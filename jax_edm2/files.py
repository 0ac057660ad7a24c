"""Outputs that appear whole or not at all."""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_HOST = re.sub(r"[^0-9A-Za-z-]", "-", socket.gethostname())[:40]
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


Target = Path | str  # where something is written; a text is the URL of a store


def within(folder: Target, name: str) -> Target:
    """What has this name in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def is_there(target: Target) -> bool:
    """Raises: CheckpointError where a store does not say."""
    if isinstance(target, Path):
        return target.exists()
    from jax_edm2 import remote

    return remote.exists(target)


@contextlib.contextmanager
def whole_or_nothing(target: Target, *, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary path beside `target` for a file or folder to be written to, and then moves it there.

    Of a URL it is a temporary path for a file, which is then uploaded (`remote.uploading`).
    If the body raises, what was written is removed and `target` stays as it was; if the process is killed, the next
    one removes it. The body is responsible for fsync of what it writes.
    Raises: FileExistsError if `target` exists, before and after the body, unless `overwrite`; OSError, and
    CheckpointError of a store.
    """
    if isinstance(target, str):
        from jax_edm2 import remote

        with remote.uploading(target, overwrite=overwrite) as temporary:
            yield temporary
        return
    if not overwrite:
        _refuse_existing(target)
    temporary = scratch(target)
    try:
        yield temporary
        if not overwrite:
            _refuse_existing(target)
        _replace(temporary, target)
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error  # a full disk says not where it is
    finally:
        for path in _family(temporary):
            _remove(path)
    _sync_folder(target.parent)


def scratch(target: Path) -> Path:
    """A path beside `target` for this process alone. What dead processes left there for the same target is removed."""
    start = f".{target.name[:100]}.{_HOST}-"
    for path in target.parent.glob(f"{_escape(start)}*"):
        match = re.match(r"(\d+)\.(tmp|old)", path.name.removeprefix(start))
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            if match[2] == "old" and not os.path.lexists(target):  # killed between the two renamings of _replace
                os.rename(path, target)
            else:
                _remove(path)
    return target.with_name(f"{start}{os.getpid()}.tmp")


def _family(temporary: Path) -> Iterator[Path]:
    """A temporary path and those that a library made from it, as orbax does."""
    return temporary.parent.glob(f"{_escape(temporary.name)}*")


def _escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _refuse_existing(target: Path):
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists")


def _replace(temporary: Path, target: Path):
    if target.is_dir() and not temporary.is_dir():  # it would be lost with everything in it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not temporary.is_dir() and not target.is_dir():
        os.replace(temporary, target)
    elif not os.path.lexists(target):
        os.rename(temporary, target)
    elif not _exchange(temporary, target):  # a folder cannot be renamed over: move the old one out of the way
        retired = temporary.with_suffix(".old")
        os.rename(target, retired)
        os.rename(temporary, target)
        _remove(retired)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, if this system can."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None, use_errno=True), "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (error := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS):  # not on this file system
        return False
    raise OSError(error, os.strerror(error), str(other))


def _remove(path: Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
