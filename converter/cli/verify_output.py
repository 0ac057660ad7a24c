"""What edm2-verify shows: the stage that is running, and in the end a report."""

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from jax_edm2.strict_json import dumps

from ..sources import Location
from .run import BAD, GOOD, NOTE, PLAIN, say


@contextlib.contextmanager
def stages():
    """Yields a function that names the stage that is running, on standard error: on a terminal, or now and then."""
    from .. import bars

    terminal = sys.stderr is not None and sys.stderr.isatty()
    shown, began, ended = "", time.monotonic(), threading.Event()

    def show(stage: str):
        nonlocal shown
        if terminal:
            click.echo(f"\r{' ' * len(shown)}\r{stage}", nl=False, err=True)
        shown = stage

    def tell():
        while not ended.wait(bars.EVERY):
            if shown and not shown.startswith("PyTorch"):  # which has lines of its own
                say(f"edm2-verify: {shown}; {time.monotonic() - began:.0f} s so far", err=True)

    if not terminal:
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield show
    finally:
        ended.set()
        show("")


def command_line() -> str:
    """As it was given, without what a URL in it may hide."""
    shown = [Location(word).name if Location(word).remote else word for word in sys.argv[1:]]
    return shlex.join(["edm2-verify", *shown])


def show(record: dict[str, Any], lines: Iterable[str], json_: bool, page: Path | None = None):
    """Print a report's record, or its lines and where its page is, if there is one."""
    if json_:
        click.echo(dumps(record))
        return
    for line in lines:
        say(line, style=_style(line))
    if page is not None:
        say(f"{page}")


def _style(line: str) -> dict[str, Any]:
    """Of a report's line: by the word that it begins with."""
    word = line.split(maxsplit=1)[0].rstrip(":") if line.strip() else ""
    return {"AGREES": GOOD, "ok": GOOD, "DISAGREES": BAD, "BAD": BAD, "INCONCLUSIVE": NOTE, "~": NOTE}.get(word, PLAIN)
