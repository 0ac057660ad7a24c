"""JSON from files that nobody vouches for, bounded before anything is built of it; and JSON that any parser reads."""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 4 * 2**20
MOST_VALUES = 100_000
MOST_DEPTH = 32
MOST_DIGITS = 100  # of a number, with its sign, point and exponent


class JSONError(ValueError):
    """Text that is no JSON, or more of it than is ever needed. The message is a phrase: 'is nested too deep'."""


def loads(text: str | bytes, *, most_bytes: int = MOST_BYTES, most_values: int = MOST_VALUES) -> Any:
    """The value of a JSON text. NaN, Infinity and keys that come twice are refused.

    Raises: JSONError.
    """
    if len(text) > most_bytes:
        raise JSONError(f"holds {len(text):,} bytes of JSON; {most_bytes:,} are read at most")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        # A value is an opening bracket, or follows one or a comma: commas in text only make the bound stricter.
        if text.count(",") + text.count("[") + text.count("{") > most_values:
            raise JSONError(f"holds more than {most_values:,} values")
        _check_depth(text)
        return json.loads(
            text, parse_constant=_no_number, parse_int=_integer, parse_float=_float, object_pairs_hook=_object
        )
    except JSONError:
        raise
    except (ValueError, RecursionError) as error:
        raise JSONError(f"is no JSON ({str(error)[:200]})") from None


def load(path: str | os.PathLike, *, most_bytes: int = MOST_BYTES, most_values: int = MOST_VALUES) -> Any:
    """The value in a JSON file, as `loads` reads it. Raises: JSONError, OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would block
        raise JSONError("is no regular file")
    with open(path, "rb") as file:
        text = file.read(most_bytes + 1)
    if len(text) > most_bytes:
        raise JSONError(f"holds {Path(path).stat().st_size:,} bytes of JSON; {most_bytes:,} are read at most")
    return loads(text, most_bytes=most_bytes, most_values=most_values)


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def _check_depth(text: str):
    depth = 0
    for token in _TOKENS.finditer(text):
        character = text[token.start()]
        depth += (character in "[{") - (character in "]}")
        if depth > MOST_DEPTH:
            raise JSONError(f"is nested more than {MOST_DEPTH} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise JSONError("has a key twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise JSONError(f"holds {text}, which is no number in JSON")


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise JSONError(f"holds a number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")) or len(text) > MOST_DIGITS:
        raise JSONError(f"holds the number {text[:20]}, which is too large or too long")
    return value


def clean(value: Any) -> Any:
    """The value in JSON's types, which have no NaN and no infinity: those are null."""
    if isinstance(value, dict):
        return {str(key): clean(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if hasattr(value, "tolist"):  # numpy's
        return clean(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def dumps(record: dict[str, Any]) -> str:
    """One line of JSON that any parser reads."""
    return json.dumps(clean(record), sort_keys=True, allow_nan=False)
