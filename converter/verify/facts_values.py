"""The values that facts are made of, and what they may be."""

import re
from collections.abc import Iterable
from typing import Any

from jax_edm2.messages import brief

NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")
LONGEST_TEXT = 1000  # characters of a text
MOST_DETAILS = 100  # values of what is only told, as versions and switches
LARGEST, LARGEST_GRADIENT = 1e150, 1e18  # of numbers, whose squares are numbers too, in float64 and in float32


class FactsError(ValueError):
    """Facts that are not what they must be. The message is a phrase: 'repeat must be a number, not ...'."""


def keys(found: Any, where: str, required: Iterable[str], optional: Iterable[str] = ()):
    """Raises: FactsError for what is no object of these keys."""
    if not isinstance(found, dict):
        raise FactsError(f"{where} must be an object, not {brief(found)}")
    required = set(required)
    if missing := required - found.keys():
        raise FactsError(f"{where} must have {min(missing)!a:.200}")
    if extra := found.keys() - required - set(optional):
        raise FactsError(f"{where} must not have {brief(min(extra))}")


def number(value: Any, where: str, most: float = LARGEST) -> float:
    """From 0, or none."""
    if isinstance(value, str) and value in NOT_NUMBERS:
        value = float(value)
    elif type(value) not in (int, float) or not -most < value < most:
        raise FactsError(f"{where} must be a number, not {brief(value)}")
    if value < 0:
        raise FactsError(f"{where} must not be below 0, as {brief(value)} is")
    return float(value)


def numbers(found: dict[str, Any], where: str, most: float = LARGEST) -> dict[str, float]:
    return {name: number(value, f"{where} of {name}", most) for name, value in found.items()}


def text(value: Any, where: str):
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise FactsError(f"{where} must be a text of at most {LONGEST_TEXT:,} characters, not {brief(value)}")


def digest(value: Any, where: str):
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise FactsError(f"{where} must be 64 hexadecimal digits, not {brief(value)}")


def details(found: Any, where: str, texts: Iterable[str]):
    """Values that are only told: few, flat and short. texts: keys that must be there, of texts."""
    keys(found, where, texts, found if isinstance(found, dict) else ())
    for name in texts:
        text(found[name], f"{where}'s {name}")
    values, count = [*found, *found.values()], 0
    while values:
        value, count = values.pop(), count + 1
        if isinstance(value, dict | list):
            values += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str):
            text(value, f"a detail of {where}")
        if count > MOST_DETAILS:
            raise FactsError(f"{where} must have at most {MOST_DETAILS} values")
