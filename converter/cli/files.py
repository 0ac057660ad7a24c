"""edm2-convert check and inspect: is a file sound, and what is it?"""

import click

from jax_edm2.messages import listing
from jax_edm2.strict_json import dumps

from .options import SETTINGS, download_options
from .paths import BroughtPath
from .run import BAD, GOOD, say

_file = click.argument("file", type=BroughtPath(exists=True))
_json = click.option("--json", "json_", is_flag=True, help="Print a machine-readable record and nothing else.")


@click.command(context_settings=SETTINGS)
@_file
@download_options
@_json
def inspect(file, json_, **_):
    """Print what FILE is and says of itself: a snapshot, checkpoint or truth."""
    from ..inspection import inspect

    found = inspect(file)
    if json_:
        click.echo(dumps(found.to_json()))
        return
    rows = list(found.rows())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


@click.command(context_settings=SETTINGS)
@_file
@download_options
@_json
def check(file, json_, **_):
    """Read all of FILE: are its names, shapes and digests right, and its values finite?

    Exit codes: 0 sound, 1 values that are NaN or infinite, 2 broken or altered.
    """
    from ..inspection import check

    found = check(file)
    if json_:
        click.echo(dumps(found.to_json()))
    elif found.sound:
        digest = f", {found.digest}" if found.digest else ""
        say(f"{file}: sound: a {found.kind} of {found.tensors} tensors, all finite{digest}", style=GOOD)
    else:
        names = listing([f"{name} ({count:,})" for name, count in sorted(found.not_finite.items())])
        say(f"{file}: values that are NaN or infinite: {names}", style=BAD)
    return 0 if found.sound else 1
