"""Where the pictures of many seeds go, named by seed, with a note of how they were made; and what is there already."""

import contextlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jax_edm2 import remote, strict_json
from jax_edm2.files import Target, scratch
from jax_edm2.messages import brief

from .pictures import MODES, PictureError, image_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Folder:
    """Where the pictures or arrays of many seeds go; each appears whole or not at all."""

    def __init__(self, path: Path, *, subdirs: bool = False, suffix: str = ".png"):
        """subdirs: a folder for every 1,000 seeds, as NVlabs' generate_images.py makes them. Raises: OSError."""
        self.path, self.subdirs, self.suffix = path, subdirs, suffix
        self._made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch(path / "picture")
        self._scratch.touch()  # an unwritable folder is known now, and not after an hour
        self._scratch.unlink()

    def leave(self):
        """Remove the folder, if it was made here and nothing came of it."""
        with contextlib.suppress(OSError):
            if self._made:
                self.path.rmdir()

    def close(self):
        """Nothing more is written or read."""

    def name(self, seed: int) -> str:
        folder = f"{seed // 1000 * 1000:06d}/" if self.subdirs else ""
        return f"{folder}{seed:06d}{self.suffix}"

    def file(self, seed: int) -> Path:
        """On this disk."""
        return self.path / self.name(seed)

    def shown(self, seed: int) -> str:
        """What its user knows it by."""
        return str(self.file(seed))

    def write(self, seed: int, array: np.ndarray, about: dict[str, Any]):
        """Save one seed's array [C, H, W]: a uint8 picture as PNG, with `about` as text; anything else as .npy.

        Raises: PictureError, OSError; CheckpointError of a store.
        """
        target, temporary = self.file(seed), self._scratch.with_name(f"{self._scratch.name}-{seed}")
        target.parent.mkdir(exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                if self.suffix == ".npy":
                    np.save(file, array)
                else:
                    image_of(array).save(file, "PNG", pnginfo=_note(about))
            os.replace(temporary, target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from None
        finally:
            temporary.unlink(missing_ok=True)

    def differences(self, seed: int, shape: tuple[int, ...], about: dict[str, Any]) -> list[str] | None:
        """What of `about` is otherwise in the file that is there for a seed; None if none is there that is whole.

        A whole one has the shape [C, H, W], and does not say that it is another seed's. Arrays say nothing, and what an
        older version did not write is not compared.
        """
        path = self.file(seed)
        if not path.is_file():
            return None
        if self.suffix == ".npy":
            return [] if _is_array(path, shape) else None
        note = _whole_picture(path, shape)
        if note is None or note.get("seed", str(seed)) != str(seed):
            return None
        try:
            found = strict_json.loads(note.get("edm2", "null"))
        except strict_json.JSONError:
            found = None
        if not isinstance(found, dict):  # of NVlabs' generate_images.py, perhaps
            return ["it does not say how"]
        return list(_differences(found, about))


class BucketFolder(Folder):
    """Likewise in a bucket, by way of this disk."""

    def __init__(self, url: str, *, subdirs: bool = False, suffix: str = ".png", keep: bool = False):
        """keep: copies are on this disk until `close`. Raises: PictureError, CheckpointError, OSError."""
        if url.startswith("hf://"):
            raise PictureError(f"{url}: on the hub every file is a commit; choose a bucket, or a folder here")
        remote.try_writing(url)
        self.url, self._keep = url.rstrip("/"), keep
        self._temporary = tempfile.TemporaryDirectory(prefix="edm2-")
        super().__init__(Path(self._temporary.name), subdirs=subdirs, suffix=suffix)

    def close(self):
        self._temporary.cleanup()

    def shown(self, seed: int) -> str:
        return f"{self.url}/{self.name(seed)}"

    def write(self, seed: int, array: np.ndarray, about: dict[str, Any]):
        super().write(seed, array, about)
        remote.put(self.url, {self.name(seed): self.file(seed)})
        self._forget(seed)

    def differences(self, seed: int, shape: tuple[int, ...], about: dict[str, Any]) -> list[str] | None:
        try:
            stored = remote.open_remote(self.shown(seed))
        except remote.NotThereError:
            return None
        self.file(seed).parent.mkdir(exist_ok=True)
        self.file(seed).write_bytes(stored.read(0, stored.size))
        found = super().differences(seed, shape, about)
        self._forget(seed)
        return found

    def _forget(self, seed: int):
        if not self._keep:
            self.file(seed).unlink()


def folder_at(target: Target, *, subdirs: bool, suffix: str, keep: bool) -> Folder:
    """A path's or a URL's. keep: of what goes into a bucket there are copies on this disk, too, until `close`."""
    if isinstance(target, str):
        return BucketFolder(target, subdirs=subdirs, suffix=suffix, keep=keep)
    return Folder(target, subdirs=subdirs, suffix=suffix)


def _is_array(path: Path, shape: tuple[int, ...]) -> bool:
    """A whole .npy file of float32?"""
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + 4 * math.prod(shape)
    except (OSError, ValueError):
        return False
    return header == (shape, False, np.dtype(np.float32)) and path.stat().st_size == size


def _whole_picture(path: Path, shape: tuple[int, ...]) -> dict[str, str] | None:
    """The texts in a PNG file of the shape [C, H, W], whose checksums are right and which can be decoded to its end."""
    try:
        if not _has_its_checksums(path.read_bytes()):
            return None
        with Image.open(path, formats=["PNG"]) as image:
            if (image.mode, image.size) != (MODES.get(shape[0]), (shape[2], shape[1])):
                return None
            image.load()
            return {str(name): str(value) for name, value in image.info.items()}
    except Exception:  # Pillow raises whatever comes: SyntaxError, zlib.error, struct.error
        return None


def _has_its_checksums(data: bytes) -> bool:
    """Does a PNG file end where it says, every chunk with its CRC? Pillow looks at some of them only."""
    position, kind = len(SIGNATURE), b""
    while position < len(data) and kind != b"IEND":
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 8 + length
        if data[end : end + 4] != zlib.crc32(data[position + 4 : end]).to_bytes(4, "big"):
            return False
        position = end + 4
    return data.startswith(SIGNATURE) and kind == b"IEND" and position == len(data)


def _differences(found: dict[str, Any], about: dict[str, Any]) -> Iterator[str]:
    """What is otherwise: settings one by one, networks by their digests and not by their names."""
    for name, value in about.items():
        if name not in found or name == "edm2_jax":
            continue
        other = found[name]
        if name in ("network", "guide"):
            wanted, had = (v.get("digest") if isinstance(v, dict) else None for v in (value, other))
            if wanted != had:
                yield f"{name} {_name(other)}, not {_name(value)}"
        elif isinstance(value, dict) and isinstance(other, dict):
            yield from _differences(other, value)
        elif json.dumps(other, sort_keys=True) != json.dumps(value, sort_keys=True):
            yield f"{name} {brief(other)}, not {brief(value)}"


def _name(network: Any) -> str:
    if not isinstance(network, dict):
        return "none"
    name, digest = (str(network.get(key, "unknown")) for key in ("name", "digest"))
    return f"{name:.60} ({digest.removeprefix('sha256:'):.8})"


def _note(about: dict[str, Any]) -> PngInfo:
    note = PngInfo()
    for name, value in about.items():
        note.add_text(name, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    return note
