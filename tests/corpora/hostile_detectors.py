"""Weights of detectors, feature statistics and pictures that are hostile, as edm2-metrics meets them."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_edm2.converter.feature_statistics import write_statistics
from jax_edm2.evaluation import Statistics
from tests.corpora.hostile_pickles import SENTINEL
from tests.corpora.inputs import Input
from tests.support.datasets import small_dataset

INPUTS: list[Input] = []
CALC = ("edm2-metrics", "calc", "--images=data.zip", "--ref=ref.pkl", "--metrics=fid", "--num=8", "--offline")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6


def add(kind: str, name: str, says: str, content: bytes | Callable[[], bytes], option: str, suffix: str):
    file = f"input.{suffix}"

    def build(path: Path):
        small_dataset(path.with_name("data.zip"), count=8)
        write_statistics(path.with_name("ref.pkl"), {"fid": Statistics(np.zeros(2048), np.eye(2048), 5000)})
        path.write_bytes(content() if callable(content) else content)

    INPUTS.append(Input(kind, name, build, says, (*CALC, f"{option}={file}"), file, None, megabytes=250))


def detector(name: str, says: str, content: bytes | Callable[[], bytes], suffix: str = "pth"):
    add("detector", name, says, content, "--inception", suffix)


def statistics(name: str, says: str, content: bytes | Callable[[], bytes], suffix: str = "pkl"):
    add("statistics", name, says, content, "--ref", suffix)


def pictures(name: str, says: str, content: bytes | Callable[[], bytes]):
    add("metrics pictures", name, says, content, "--images", "zip")


def archive(*members: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return file.getvalue()


def legacy(*values: Any, header: tuple = (MAGIC, PROTOCOL, {"little_endian": True})) -> bytes:
    return b"".join(pickle.dumps(value, 2) for value in (*header, *values))


class Evil:
    def __reduce__(self):
        return exec, (f"open({SENTINEL!r}, 'w')",)


EVIL = pickle.dumps(Evil(), 2)


def many(count: int) -> bytes:
    return archive(*((f"x/data/{i}", b"") for i in range(count)))


def header_of(tensors: dict) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


detector("executes code", "global '", pickle.dumps(Evil(), 4))
detector("executes code, as protocol 2", "global '", legacy(Evil()))
detector("executes code, in an archive", "global '", archive(("x/data.pkl", EVIL)))
detector(
    "executes code, in a script", "global '", archive(("x/data.pkl", pickle.dumps(Evil(), 2)), ("x/constants.pkl", b""))
)
detector("an archive of 30,000 members", "members in a directory", lambda: many(30_000))
detector("an archive that overlaps", "zip archive", lambda: many(3)[:-60] + many(3)[-22:])
detector("an archive without a pickle", "has no data.pkl", lambda: many(3))
detector("a million opcodes", "opcodes and items", b"\x80\x04" + b"]" * 10**6 + b".")
detector("a million opcodes, as protocol 2", "opcodes and items", legacy() + b"\x80\x02" + b"]" * 10**6 + b".")
detector("ten megabytes of text", "bytes of text", lambda: pickle.dumps({"x": "a" * 10**7}, 4))
detector("lists nested 100,000 deep", "holds no modules", b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".")
detector("an older one of another protocol", "protocol version", legacy(header=(MAGIC, 7, {})))
detector("an older one, big-endian", "not little-endian", legacy(header=(MAGIC, PROTOCOL, {"little_endian": False})))
detector("an older one of a list", "holds no state_dict", legacy([1, 2], []))
detector("an older one with keys of nothing", "lists other storages", legacy({}, ["0", "1"]))
detector(
    "20,000 tensors of nothing",
    "10,000 tensors",
    lambda: header_of({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}),
    "safetensors",
)
detector(
    "a tensor of 10^18 elements",
    "has 4 bytes, not 4,000,000,000",
    lambda: header_of({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}),
    "safetensors",
)
statistics("executes code", "global '", pickle.dumps(Evil(), 4))
statistics("a million opcodes", "opcodes and items", b"\x80\x04" + b"]" * 10**6 + b".")
statistics("an array of 10^12 numbers", "mu", archive(("mu.npy", npy((10**12,), b"")), ("sigma.npy", b"")), "npz")
statistics(
    "an array that inflates to a gigabyte",
    "bytes, and may have",
    lambda: archive(("mu.npy", npy((10**8,), bytes(8 * 10**8))), ("sigma.npy", b""), kind=zipfile.ZIP_DEFLATED),
    "npz",
)
pictures("a picture that is none", "is no picture that can be read", archive(("a.png", b"no picture"), ("b.png", b"x")))
pictures("a name that climbs", "is no name of a file in a dataset", archive(("../a.png", b"x")))
pictures("no archive", "is no ZIP file that can be read", b"PK" * 100)
