"""Who calls the library, and is told what it does."""

import contextlib


class Listener:
    """What a call tells: its warnings, and [what, in all, done] of each thing that it did."""

    def __init__(self):
        self.warnings, self.progress = [], []

    @contextlib.contextmanager
    def show(self, what, total):
        self.progress.append(row := [what, total, 0])

        def advance(count):
            row[2] += count

        yield advance
