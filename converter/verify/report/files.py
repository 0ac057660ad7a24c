"""The files of a report, each there whole or not at all."""

from pathlib import Path
from typing import Any

from jax_edm2.files import whole_or_nothing
from jax_edm2.strict_json import dumps

from .html import html
from .text import markdown


def write_report(record: dict[str, Any], folder: Path):
    """report.json, report.md and report.html. record: of `text.to_json`."""
    write_whole(folder / "report.json", dumps(record))
    write_whole(folder / "report.md", markdown(record))
    write_whole(folder / "report.html", html(record))


def write_whole(path: Path, text: str):
    with whole_or_nothing(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
