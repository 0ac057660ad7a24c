"""An input that is broken or hostile: what it holds, and what the command that is given it must say."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.corpora.hostile_pickles import dumps

ACCEPT = "accepted"


@dataclass(frozen=True)
class Input:
    """build(path) writes `file` into an empty folder, where `command` is run. says: part of the one line, or ACCEPT."""

    kind: str
    name: str
    build: Callable[[Path], object]
    says: str
    command: tuple[str, ...] = ("edm2-convert", "input.pkl", "-o", "output.safetensors")
    file: str = "input.pkl"
    output: str | None = "output.safetensors"  # all that is made if it is accepted
    code: int = 2  # the exit code if it is not
    seconds: float = 5  # of CPU time
    megabytes: float = 200  # above what the imported code takes


def snapshot_input(kind: str, name: str, says: str, content) -> Input:
    """For edm2-convert. content: bytes, something to be pickled, or a function: of the path, or giving either."""

    def build(path):
        value = content(path) if callable(content) else content
        if value is not None:
            path.write_bytes(value if isinstance(value, bytes) else dumps(value))

    return Input(kind, name, build, says)
