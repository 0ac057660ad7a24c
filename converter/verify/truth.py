"""The truth file: what PyTorch computed in float64, and how far PyTorch itself is from it in the precision asked for.

A zip archive of .npy members (numpy.load reads it like any .npz) and one JSON member, `truth.json`, written last.

    CASE/SCOPE/OPERATION        float64, a tap; CASE is seed0, seed1, ...
    CASE/SCOPE/clip.amplified   the clip of what was multiplied by a power of two until it had something to clip
    CASE unlabelled/unet.embedding/OPERATION   float64, taps of the embedding with class_labels=None
    trajectory                  float64 [steps + 1, 1, C, H, W], the states of the Heun sampler
    loss                        float64, the mean EDM2 loss
    gradient/NAME, step/NAME, ema/NAME   float32 (rounded once), of every parameter; gradient/input besides
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ConverterError
from converter.verify.cases import Plan
from jax_edm2.config import EDM2Config

SCHEMA = "edm2-truth/1"
MEMBER = "truth.json"
PROJECTIONS = 8


class TruthError(ConverterError):
    """A truth file that is not one, or does not fit what it is used for."""


class TruthWriter:
    """Writes a truth file, member by member, and reads back what it wrote. Use it in a `with` statement."""

    def __init__(self, path: Path):
        self._zip = zipfile.ZipFile(path, "x")  # stored: noise does not compress

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._zip.close()

    def __setitem__(self, key: str, value: np.ndarray):
        array = np.asarray(value, order="C")
        with self._zip.open(f"{key}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
            member.write(array.reshape(-1).view(np.uint8).data)  # write_array would copy it in small pieces

    def __getitem__(self, key: str) -> np.ndarray:
        return _read(self._zip, key)

    def finish(self, facts: dict[str, Any]):
        self._zip.writestr(MEMBER, json.dumps({"schema": SCHEMA, **facts}), zipfile.ZIP_DEFLATED)


class Truth:
    """An open truth file. Use it in a `with` statement.

    facts: the JSON member: plan, config, snapshot, parameters, errors, environment, ...
    """

    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
            self.facts = json.loads(self._zip.read(MEMBER))
        except FileNotFoundError:
            raise TruthError(f"{path}: there is no such file; make it with --save-truth") from None
        except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
            raise TruthError(f"{path}: is no complete truth file ({error}); make it with --save-truth") from None
        if self.facts.get("schema") != SCHEMA:
            raise TruthError(f"{path}: has schema {self.facts.get('schema')!r}, not {SCHEMA!r}; make it again")
        self.path = path
        self.plan = Plan.from_json(self.facts["plan"])
        self.config = EDM2Config(**self.facts["config"])
        self.golden: dict[str, Any] | None = self.facts.get("golden")  # see `converter.verify.golden`

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._zip.close()

    def __contains__(self, key: str) -> bool:
        return f"{key}.npy" in self._zip.NameToInfo

    def keys(self) -> set[str]:
        """Of all arrays."""
        return {name.removesuffix(".npy") for name in self._zip.NameToInfo if name != MEMBER}

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            return _read(self._zip, key)
        except (KeyError, zipfile.BadZipFile) as error:
            raise TruthError(f"{self.path}: {key} is missing or damaged ({error}); make it again") from None


def projection(name: str, value: np.ndarray) -> np.ndarray:
    """The norm of an array and PROJECTIONS random projections of it, float64: enough to see any change of it.

    The directions depend on the array's name and size alone; theirs is numpy's frozen generator.
    """
    flat = np.asarray(value, np.float64).reshape(-1)
    seed = int.from_bytes(hashlib.sha256(f"{name} {flat.size}".encode()).digest()[:4], "little")
    directions = np.random.RandomState(seed).standard_normal((PROJECTIONS, flat.size)) / np.sqrt(PROJECTIONS)
    return np.array([np.linalg.norm(flat), *(directions @ flat)])


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise KeyError(f"{key} is of another .npy version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        return np.frombuffer(member.read(), dtype).reshape(shape)
