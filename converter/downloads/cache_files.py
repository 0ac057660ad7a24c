"""The cache's folder and the files in it: nobody else's, and never through a link.

What matters is who may change names in the folder: whoever can, puts a network of his own under a name that we trust,
or makes us write through a link to where he could not. So the folder must be ours or root's, and others must not be
able to write to it. Then a name that we have looked at stays what it was, and paths are as safe as descriptors.

Who are others? A folder that the umask 002 of Debian or Fedora made is open to its group: that is no risk if the group
is the user's own, which has his name and nobody else in it (pam_umask's rule), unless an access control list lets more
people in. A folder with the sticky bit, /tmp for one, lets everybody make files, but not touch those of others: it is
accepted, and every file in it must be ours or root's. A group's shared cache is refused: any member could replace what
the others load; share it read-only, owned by root. Links on the way to the folder are the user's own business; one in
its very place must be his or root's.
"""

import contextlib
import os
import stat
from pathlib import Path

from ..errors import ConverterError

_ELSEWHERE = "choose another cache with --cache-dir or DNNLIB_CACHE_DIR"


class CacheError(ConverterError):
    """A cached file that is not what was recorded of it, or a cache that cannot be used."""


def make_folder(path: Path):
    """Make a cache's folder, and those above it, for us alone. Raises: CacheError where it is unsafe, OSError."""
    missing: list[Path] = []
    above = path
    while not os.path.lexists(above):
        missing.append(above)
        above = above.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)
    check_folder(path)


def check_folder(path: Path):
    """Raises: CacheError if others may change what is in a folder, OSError."""
    if stat.S_ISLNK((link := os.lstat(path)).st_mode) and not _ours(link):
        raise CacheError(f"{path}: is a link that somebody else made; {_ELSEWHERE}")
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise CacheError(f"{path}: is no folder; {_ELSEWHERE}")
    if not _ours(found):
        raise CacheError(f"{path}: belongs to somebody else, who may change what is in it; {_ELSEWHERE}")
    others = stat.S_IWOTH if _own_group(path, found) else stat.S_IWOTH | stat.S_IWGRP
    if found.st_mode & others and not found.st_mode & stat.S_ISVTX:
        raise CacheError(f"{path}: others may write to this folder: `chmod go-w` it, or {_ELSEWHERE}")


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file of ours. A file that O_CREAT makes can be read by all, as the umask lets it.

    Raises: CacheError for anything else of that name; FileNotFoundError, OSError.
    """
    check_name(path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        found = os.fstat(descriptor)
        _check(path, found)
        if flags & (os.O_WRONLY | os.O_RDWR) and found.st_nlink > 1:
            raise CacheError(f"{path}: has another name elsewhere, where it would be written to; remove it")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_name(path: Path) -> bool:
    """Is there a file of that name? Raises: CacheError if it is a link, a device or somebody else's."""
    try:
        _check(path, os.lstat(path))
    except FileNotFoundError:
        return False
    return True


def _check(path: Path, found: os.stat_result):
    if stat.S_ISLNK(found.st_mode):
        raise CacheError(f"{path}: is a link, which the cache does not follow; remove it")
    if not stat.S_ISREG(found.st_mode):
        raise CacheError(f"{path}: is no regular file; remove it")
    if not _ours(found):
        raise CacheError(f"{path}: belongs to somebody else; remove it, or {_ELSEWHERE}")


def _ours(found: os.stat_result) -> bool:
    return found.st_uid in (os.geteuid(), 0)


def _own_group(path: Path, found: os.stat_result) -> bool:
    """Is a folder's group the user's private one, and nobody else let in?"""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    if user.pw_gid != found.st_gid or group.gr_name != user.pw_name or not set(group.gr_mem) <= {user.pw_name}:
        return False
    try:
        return "system.posix_acl_access" not in os.listxattr(path)
    except (AttributeError, OSError):  # there are none on this system
        return True
