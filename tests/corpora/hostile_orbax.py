"""Broken and hostile orbax checkpoints: every file of the folder, and the record in it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax_edm2.record import CHECK, KEY
from tests.corpora.hostile_checkpoints import OK, ORBAX, checkpoint_input, sound
from tests.corpora.inputs import ACCEPT, Input
from tests.support.json_mutants import RAW

INPUTS: list[Input] = []


def add(*described: Any, **more: Any):
    INPUTS.append(checkpoint_input(*described, **more))


FOLDER = "orbax"


def folder(name: str, says: str, edit: Callable[[Path], Any], **more: Any):
    def make(path: Path):
        shutil.copytree(sound("orbax"), path)
        edit(path)

    add(FOLDER, name, says, make, **{"file": ORBAX, "megabytes": 300, **more})


def each_data_file(path: Path, edit: Callable[[Path], Any]):
    """Every file with tensors: how orbax spreads them, and which bytes it reads again, differs from run to run."""
    for file in sorted(path.rglob("d/*")):
        edit(file)


def emptied(file: Path):
    file.write_bytes(b"")


def cut(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path):
    data = bytearray(file.read_bytes())
    for place in range(len(data) // 2 % 100, len(data), 100):  # much of what orbax keeps it never reads again
        data[place] ^= 4
    file.write_bytes(data)


def a_folder(file: Path):
    file.unlink()
    file.mkdir()


def a_fifo(file: Path):
    file.unlink()
    os.mkfifo(file)


def a_loop(file: Path):
    file.unlink()
    file.symlink_to(file.name)


def nested(file: Path):
    file.write_bytes(b'{"a":' + RAW["lists nested 100,000 deep"] + b"}")


def digits(file: Path):
    file.write_bytes(b'{"a":' + b"9" * 5000 + b"}")


def large(file: Path):
    file.write_text(json.dumps({"a": ["y"] * 10_111_111}))


def listed(file: Path):
    file.write_text("[]")


BREAK = (emptied, cut, a_folder, a_fifo, a_loop, Path.unlink)
for edit in (*BREAK, flipped, nested, digits, large, listed):
    folder(
        f"_CHECKPOINT_METADATA, {edit.__name__}", "input", lambda path, edit=edit: edit(path / "_CHECKPOINT_METADATA")
    )
for edit in (*BREAK, nested, digits, large, listed):
    folder(f"_METADATA, {edit.__name__}", "input", lambda path, edit=edit: edit(path / "_METADATA"))
for edit in (*BREAK, flipped):
    folder(f"manifest.ocdbt, {edit.__name__}", "input", lambda path, edit=edit: edit(path / "manifest.ocdbt"))
    folder(f"its data, {edit.__name__}", "input", lambda path, edit=edit: each_data_file(path, edit))
folder("d is missing", "input", lambda path: shutil.rmtree(path / "d"))
folder("nothing in it", "it has no _CHECKPOINT_METADATA", lambda path: shutil.rmtree(path) or path.mkdir())
folder(
    "10,001 files more",
    "more than 10,000 files",
    lambda path: [(path / f"x{i}").touch() for i in range(10_001)] and None,
)
folder(
    "a record with guide 5",
    "sampler.guide must be a text",
    lambda path: _edit_orbax(path, lambda r: r["sampler"].update(guide=5)),
)
folder(
    "a record that was altered", "was altered", lambda path: _edit_orbax(path, lambda r: r.update(license="mine"), True)
)
folder("a record that is a list", "not a record", lambda path: _edit_orbax(path, lambda _: []))
folder(
    "another digest",
    "its tensors were altered",
    lambda path: _edit_orbax(path, lambda r: r.update(digest=f"sha256:{'0' * 64}")),
)
folder("as it should be", ACCEPT, lambda path: None, **{**OK, "file": ORBAX})


def _edit_orbax(path: Path, edit: Callable[[dict], Any], keep: bool = False):
    file = path / "_CHECKPOINT_METADATA"
    found = json.loads(file.read_text())
    fields = json.loads(found["custom_metadata"][KEY])
    if not keep:
        del fields[CHECK]
    changed = edit(fields)
    found["custom_metadata"][KEY] = json.dumps(fields if changed is None else changed)
    file.write_text(json.dumps(found))
