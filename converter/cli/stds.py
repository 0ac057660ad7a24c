"""Lists of relative standard deviations on a command line: 0.05,0.1 or 0.010,0.015,...,0.250."""

import click

CLOSE = 1e-4  # of the number of steps between two ends


class Stds(click.ParamType):
    """0.05,0.1, or with an even interval in between: 0.010,0.015,...,0.250."""

    name = "LIST"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        words, found = value.split(","), []
        for i, word in enumerate(words):
            if word.strip() == "...":
                found += self._between(value, words, i, param, ctx)
            else:
                found.append(self._number(value, word, param, ctx))
        return tuple(sorted(set(found)))

    def _number(self, value, word, param, ctx) -> float:
        try:
            return float(word)
        except ValueError:
            self.fail(f"{value!r:.100} is no list such as 0.05,0.1 or 0.010,0.015,...,0.250", param, ctx)

    def _between(self, value, words, i, param, ctx) -> list[float]:
        """What ... stands for: it goes on from the two before it, and ends before the one after."""
        if not 2 <= i < len(words) - 1 or "..." in (words[i - 2], words[i - 1], words[i + 1]):
            self.fail(f"{value!r:.100}: ... comes after two numbers and before one", param, ctx)
        first, second, last = (self._number(value, words[k], param, ctx) for k in (i - 2, i - 1, i + 1))
        count = (last - second) / (second - first) - 1 if second != first else 0.0
        if not 0.5 < count < 10_000 or abs(count - round(count)) > CLOSE:
            self.fail(f"{value!r:.100}: no even steps lead from {second:g} to {last:g}", param, ctx)
        return [second + (second - first) * (k + 1) for k in range(round(count))]
