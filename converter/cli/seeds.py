"""Lists of seeds on a command line: 0-3,7."""

import re

import click


class Seeds(click.ParamType):
    """A tuple of different numbers from 0, in the order given; at most `most` of them."""

    name = "LIST"

    def __init__(self, most: int = 10_000):
        self.most = most

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        seeds: dict[int, None] = {}
        for part in value.split(","):
            match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part.strip())
            if not match or int(match[2] or match[1]) < int(match[1]):
                self.fail(f"{value!r:.100} is no list of seeds such as 0-3,7", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last - first >= self.most - len(seeds):
                self.fail(f"{value!r:.100} has more than {self.most:,} seeds", param, ctx)
            seeds |= dict.fromkeys(range(first, last + 1))
        return tuple(seeds)
