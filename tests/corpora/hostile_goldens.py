"""Folders of goldens that are broken or hostile, and what edm2-verify must say to each."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax_edm2.converter.verify.golden.check import FOLDER
from tests.corpora.inputs import Input
from tests.support.truths import Parts

INPUTS: list[Input] = []
BALANCES, ONE_LEVEL = FOLDER / "balances.npz", FOLDER / "one-level.npz"
COMMAND = ("edm2-verify", "--golden", "goldens", "--device", "cpu")


def add(name: str, says: str, build: Callable[[Path], object]):
    INPUTS.append(Input("golden folder", name, build, says, COMMAND, "goldens", None))


def golden_fact(name: str, says: str, *place: Any):
    """A sound golden with another value, where keys lead to it."""

    def build(folder: Path):
        found = Parts.of(ONE_LEVEL)
        found.say(*place)
        folder.mkdir()
        (folder / "x.npz").write_bytes(found.archive())

    add(name, says, build)


def folder(name: str, says: str, fill: Callable[[Path], object]):
    def build(path: Path):
        path.mkdir()
        fill(path)

    add(name, says, build)


folder("nothing in it", "has no goldens", lambda path: None)
folder("other files in it", "has no goldens", lambda path: (path / "x.txt").write_text("text"))
folder("a text as golden", "x.npz: is no zip archive", lambda path: (path / "x.npz").write_text("text"))
folder("an empty file as golden", "x.npz: is no zip archive", lambda path: (path / "x.npz").touch())
folder("a folder as golden", "x.npz: is no file", lambda path: (path / "x.npz").mkdir())
folder("a pipe as golden", "x.npz: is no file", lambda path: os.mkfifo(path / "x.npz"))
folder("a link to nothing as golden", "there is no such file", lambda path: (path / "x.npz").symlink_to("nothing"))
folder("a truth as golden", "is a truth file and no golden",
       lambda path: (path / "x.npz").write_bytes(Parts.made_up().archive()))  # fmt: skip
folder("a golden twice", "is of the same network as a.npz",
       lambda path: [shutil.copy(BALANCES, path / name) for name in ("a.npz", "b.npz")])  # fmt: skip
folder("101 goldens", "has more than 100 goldens",
       lambda path: [(path / f"{i}.npz").touch() for i in range(101)])  # fmt: skip
folder("a name for a terminal", "\\x1b[31m",
       lambda path: (path / "\x1b[31m\n.npz").write_text("text"))  # fmt: skip


def flipped(path: Path):
    data = bytearray(BALANCES.read_bytes())
    data[len(data) // 3] ^= 1
    (path / "balances.npz").write_bytes(data)


folder("a golden with a bit flipped", "is damaged: its sha256 is not", flipped)
golden_fact("a golden of no network", "no network has that name", "golden", "network", "mine")
golden_fact("a golden of a climbing network", "no network has that name", "golden", "network", "../../../tmp/x")
golden_fact("a golden of another network", "has another configuration", "golden", "network", "plain")
golden_fact("a golden whose network is a list", "network must be a text", "golden", "network", ["one level"])
golden_fact("a golden that is null", "golden must be an object", "golden", None)
golden_fact("a golden that is text", "golden must be an object", "golden", "yes")
golden_fact("a golden without tolerance", "must have ", "golden", {"network": "one level"})
golden_fact("a golden of no tolerance", "another tolerance", "golden", "tolerance", None)
golden_fact("a golden of a high tolerance", "another tolerance", "golden", "tolerance", "accumulated", 1e9)
golden_fact("a golden of a low tolerance", "another tolerance", "golden", "tolerance", "accumulated", -1.0)
golden_fact("a golden of a NaN tolerance", "another tolerance", "golden", "tolerance", "accumulated", "NaN")
golden_fact("a golden with another rule", "another tolerance", "golden", "tolerance", "k", 4.0)
golden_fact("a golden of large errors", "not above 0 and at most 0.001", "golden", "measured", "gradient", 0.5)
golden_fact("a golden of no errors", "not above 0 and at most 0.001", "golden", "measured", "gradient", 0)
golden_fact("a golden of NaN errors", "not above 0 and at most 0.001", "golden", "measured", "gradient", "NaN")
golden_fact("a golden of endless errors", "not above 0 and", "golden", "measured", "gradient", "Infinity")
golden_fact("a golden of errors of text", "must be a number", "golden", "measured", "gradient", "1")
golden_fact("a golden of no machine", "what machines", "golden", "on", [])
golden_fact("a golden of a wrong digest", "64 hexadecimal digits", "golden", "normalised", "0")
golden_fact("a golden of other checks", "is a golden of other checks", "plan", "checks", ["trajectory"])
golden_fact("a golden in bfloat16", "is a golden of other checks, another precision", "plan", "precision", "bfloat16")
golden_fact("a golden of a huge batch", "which should be", "plan", "batch", 65536)

BY_COMMAND = {  # as processes in `make test`
    "a pipe as golden", "a name for a terminal", "a golden of a high tolerance", "a golden with a bit flipped",
    "nothing in it",
}  # fmt: skip
