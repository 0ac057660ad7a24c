"""The source that a snapshot carries of its network: what is known of it, and how it is shown."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from jax_edm2.record import Code

from .. import embedded
from ..snapshot import Snapshot

SHOWN = 150  # characters of a line of source; what is longer goes on in the next line


@dataclass(frozen=True)
class Source:
    """The source inside a snapshot."""

    path: Path
    text: str
    code: Code

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        """Nothing is executed."""
        return cls(snapshot.path, snapshot.source, embedded.identify(snapshot.source))

    def before_execution(self) -> str:
        """A sentence on what is about to be executed."""
        lines, what = self.text.count("\n"), embedded.description(self.code)
        return f"executing the source inside {self.path}: {lines} lines, sha256:{self.code.sha256}, {what}"

    def warning(self) -> str | None:
        """A sentence on what is not known and will not be executed."""
        return embedded.warning(str(self.path), self.code)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.code), "source": self.text}

    def lines(self) -> Iterator[str]:
        """All of it, with numbers, below a line on what it is."""
        yield f"{self.path}: sha256:{self.code.sha256}, {embedded.description(self.code)}"
        for number, line in enumerate(re.split(r"\r\n?|\n", self.text), 1):  # where Python sees the end of a line
            for at in range(0, max(len(line), 1), SHOWN):
                yield f"{'+' if at else number:>6}  {line[at : at + SHOWN]}".rstrip(" ")
