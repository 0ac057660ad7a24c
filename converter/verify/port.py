"""Anybody's port of a network, by its name on a command line."""

import importlib
import os
import sys
from functools import reduce

from .request import Port, VerifyError


def import_port(name: str) -> Port:
    """What `package.module:function` names; the current folder is looked in first, as `python -m` does.

    This runs the module, which may load weights. Raises: VerifyError.
    """
    module, _, path = name.partition(":")
    if not module or not path or not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise VerifyError(f"{name!r:.200} names no function: write package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise VerifyError(f"{name}: there is no module {error.name}, here or installed") from None
        raise VerifyError(f"{name}: cannot be imported: {raised(error)}") from None
    except (Exception, SystemExit) as error:  # a script that calls sys.exit would end this with its exit code
        raise VerifyError(f"{name}: cannot be imported: {raised(error)}") from None
    try:
        denoise = reduce(getattr, path.split("."), found)
    except AttributeError:
        raise VerifyError(f"{name}: {module} has no {path}") from None
    if not callable(denoise):
        raise VerifyError(f"{name}: is {type(denoise).__name__}, and no function of x, sigma and labels")
    return Port(name, denoise)


def raised(error: BaseException) -> str:
    """An exception in one line."""
    why = " ".join(str(error).split())
    return f"{type(error).__name__}: {why:.200}" if why else type(error).__name__
