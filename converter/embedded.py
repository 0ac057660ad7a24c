"""Whose network a snapshot carries: its embedded source beside those that are known, as syntax trees.

torch_ref stands in for the embedded source wherever that is not run. So it must be NVlabs', or our own; a fork with the
same tensors and another activation would convert and be verified without a word. known_sources.json has hashes alone:
of whole texts, of their meaning, and of every function and class in it (`golden.known_sources` writes it).
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jax_edm2.messages import listing
from jax_edm2.record import Code

RECORD = Path(__file__).with_name("known_sources.json")
ORDER = "the order of its statements"


@dataclass(frozen=True)
class Known:
    """One version of a known source. text: sha256 of its exact text; whole, parts: as `converter.meaning` has them."""

    name: str
    text: str
    whole: str
    parts: Mapping[str, str]


@functools.lru_cache(maxsize=16)
def identify(source: str) -> Code:
    """What is known of a network's source, and else what differs from the known source that is nearest to it.

    At once where the text is a known one to the letter. Nothing is executed.
    """
    sha256 = sha256_of(source)
    if name := known_text(sha256):
        return Code(sha256, known=name)
    from .meaning import MeaningError, meaning_of  # which known texts do not need

    try:
        found = meaning_of(source)
    except MeaningError as error:
        return Code(sha256, differs=(_short(f"all of it, which {error}"),))
    for known in known_sources():
        if known.whole == found.whole:
            return Code(sha256, known=known.name)
    nearest = min(known_sources(), key=lambda known: len(_differences(known.parts, found.parts)))
    differs = _differences(nearest.parts, found.parts) or [ORDER]
    more = [f"{len(differs) - Code.MOST + 1:,} more"] if len(differs) > Code.MOST else []
    return Code(sha256, nearest=nearest.name, differs=(*differs[: Code.MOST - len(more)], *more))


def sha256_of(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def known_text(sha256: str) -> str | None:
    """The name of the known source whose text has this hash."""
    return next((known.name for known in known_sources() if known.text == sha256), None)


@functools.cache
def known_sources() -> tuple[Known, ...]:
    return tuple(
        Known(source["name"], version["text"], version["whole"], version["parts"])
        for source in json.loads(RECORD.read_text())
        for version in source["versions"]
    )


def _differences(known: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of what differs, in the order of the known source, then of what is added to it."""
    changed = [name if name in found else f"{name} (missing)" for name in known if known[name] != found.get(name)]
    return [_short(name) for name in changed + [f"{name} (added)" for name in found if name not in known]]


def _short(name: str) -> str:
    """Letters that only look like a known name's are escaped."""
    return ascii(name)[1:-1][: Code.LONGEST]


def description(code: Code) -> str:
    """A phrase: what the source is known as, or what differs."""
    if code.known is not None:
        return code.known
    beside = f" from {code.nearest}" if code.nearest else ""
    return f"not a known one; what differs{beside}: {listing(code.differs)}"


def warning(name: str, code: Code | None) -> str | None:
    """One line for a network whose source is not known. name: of its file."""
    if code is None or code.known is not None:
        return None
    return (
        f"{name}: the source of its network (sha256:{code.sha256}) is {description(code)}. Its weights are run in our "
        "network: edm2-verify --reference embedded judges whether that computes the same"
    )
