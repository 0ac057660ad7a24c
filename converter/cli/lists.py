"""Lists on a command line, with commas between: of numbers, or of names."""

from collections.abc import Callable

import click


class Numbers(click.ParamType):
    """A tuple of numbers: 0.002,1,80."""

    def __init__(self, what: str, check: Callable[[tuple[float, ...]], bool] = bool, name: str = "LIST"):
        """what: should be given, with an example, for whoever gives something else. check: whether numbers are that."""
        self.name, self._what, self._check = name, what, check

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not self._check(numbers):
            self.fail(f"{value!r:.100} is no {self._what}", param, ctx)
        return numbers


class Names(click.ParamType):
    """Some of `known`, or all; in the order of these."""

    name = "LIST"

    def __init__(self, known: tuple[str, ...]):
        self.known = known

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        names = self.known if value == "all" else words(value)
        if unknown := [name for name in names if name not in self.known]:
            self.fail(f"{unknown[0]!r:.100} is none of {', '.join(self.known)}, all", param, ctx)
        return tuple(name for name in self.known if name in names)


class Words(click.ParamType):
    """A tuple of whatever words there are: fid,fd_dinov2."""

    name = "LIST"

    def convert(self, value, param, ctx):
        return value if isinstance(value, tuple) else words(value)


def words(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(","))
