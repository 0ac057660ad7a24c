"""Words for a person, about values that a file or a server may have made huge, endlessly nested or treacherous."""

from collections.abc import Sequence
from typing import Any

LONGEST = 2000  # characters of a line
LISTED = 1500  # characters of a listing, which leaves room for what stands around it


def printable(text: str) -> str:
    """`text` with escapes for every character that a terminal does not simply show: controls, bidirectional marks."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """`text` as one printable line of at most LONGEST characters: what is longer loses its middle."""
    line = printable(text[:LONGEST] + text[-LONGEST:] if len(text) > 2 * LONGEST else text)
    if len(line) <= LONGEST:
        return line
    end = LONGEST // 4
    return f"{line[: LONGEST - end - 5]} ... {line[-end:]}"


def brief(value: Any) -> str:
    """A short text for a value: repr would build all of it."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 2**64 else f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str):
        return ascii(value[:60])
    if isinstance(value, tuple | list) and len(value) <= 8 and all(isinstance(v, int | float) for v in value):
        return f"[{', '.join(map(brief, value))}]" if isinstance(value, list) else f"({', '.join(map(brief, value))})"
    return f"a value of type {type(value).__name__}"


def listing(problems: Sequence[str]) -> str:
    """The problems on one line, as many as a person may want to read."""
    shown, length = 0, 0
    for problem in problems:
        length += len(problem) + 2
        if shown and length > LISTED:
            break
        shown += 1
    rest = len(problems) - shown
    return "; ".join(problems[:shown]) + (f"; and {rest:,} more" if rest else "")
