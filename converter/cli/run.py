"""How every command ends: exit codes, and errors as one line on standard error."""

import contextlib
import logging
import os
import signal
import sys
from typing import Any, NoReturn

import click

from jax_edm2.messages import one_line
from jax_edm2.tensors import CheckpointError

from ..errors import ConverterError, ProcessFailed, UsageError
from .interrupts import INTERRUPTED, KeyboardInterrupts, leave_at_once

BAD_INPUT = 2
PLAIN: dict[str, Any] = {}
GOOD, BAD, NOTE, HINT = {"fg": "green"}, {"fg": "red"}, {"fg": "yellow"}, {"dim": True}
TERMINATED = 128 + signal.SIGTERM


def run(command: click.Command) -> NoReturn:
    """Run a click command to its exit code: 0 done, 2 bad usage or input, 130 interrupted, or what it returns."""
    name = command.name or "edm2"
    leave_at_once(name)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with tracebacks
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # as any exit: what is half done is removed
    try:
        with KeyboardInterrupts():
            code = command.main(prog_name=name, standalone_mode=False) or 0
        sys.exit(code)
    except click.ClickException as error:
        _fail(name, f"{error.format_message()} (see {name} --help)")
    except UsageError as error:
        _fail(name, f"{error} (see {name} --help)")
    except (ConverterError, CheckpointError) as error:
        _fail(name, str(error))
    except ProcessFailed as error:  # it has said why
        sys.exit(error.code)
    except FileExistsError as error:
        of_ours = error.errno is None  # else the system's, which has a file's name
        _fail(name, f"{error}; use --force to replace it" if of_ours else f"{error.filename}: there is a file already")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        sys.exit(0)
    except OSError as error:
        _fail(name, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: interrupted", err=True)
        _leave(INTERRUPTED)
    except SystemExit as error:
        if error.code == TERMINATED:
            _leave(TERMINATED)
        raise


def say(line: str = "", *, err: bool = False, style: dict[str, Any] = PLAIN):
    """Print one line, whatever the names in it hold: nothing that a terminal would act on, and no end of it.

    style: for terminals, where NO_COLOR (no-color.org) is not set.
    """
    text = one_line(line)
    click.echo(text if os.environ.get("NO_COLOR") else click.style(text, **style) if style else text, err=err)


def _leave(code: int) -> NoReturn:
    """At once: JAX crashes if Python is taken down while it compiles."""
    with contextlib.suppress(OSError, AttributeError):  # closed, or none
        sys.stdout.flush()
    os._exit(code)


def _fail(name: str, message: str) -> NoReturn:
    """One line, whatever the names in it hold."""
    with contextlib.suppress(OSError):  # nobody listens
        say(f"{name}: {message}", err=True)
    sys.exit(BAD_INPUT)
