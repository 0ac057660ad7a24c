"""PNG files: named by seed, with a note of how they were made, and contact sheets of them."""

import contextlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jax_edm2 import remote, strict_json
from jax_edm2.files import Target, scratch, whole_or_nothing, within
from jax_edm2.messages import brief

from .errors import ConverterError

MODES = {1: "L", 3: "RGB"}  # by channels
SIGNATURE = b"\x89PNG\r\n\x1a\n"
ON_A_SHEET = 400  # pictures
TILE, GAP = 48, 2  # pixels: small pictures are enlarged to at least TILE


class PictureError(ConverterError):
    """A picture that cannot be written or read."""


class Folder:
    """Where the pictures or arrays of many seeds go; each appears whole or not at all."""

    def __init__(self, path: Target, *, subdirs: bool = False, suffix: str = ".png", keep: bool = False):
        """path: also the URL of a folder in a bucket. subdirs: a folder for every 1,000 seeds, as NVlabs'
        generate_images.py makes them. keep: of what goes into a bucket there are copies on this disk until `close`.

        Raises: PictureError, CheckpointError, OSError.
        """
        self.path, self.subdirs, self.suffix, self._keep = path, subdirs, suffix, keep
        self._temporary: tempfile.TemporaryDirectory | None = None
        if isinstance(path, str):
            if path.startswith("hf://"):
                raise PictureError(f"{path}: on the hub every file is a commit; choose a bucket, or a folder here")
            remote.try_writing(path)
            self._temporary = tempfile.TemporaryDirectory(prefix="edm2-")
            self._here, self._made = Path(self._temporary.name), False
        else:
            self._here, self._made = path, not path.exists()
            path.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch(self._here / "picture")
        self._scratch.touch()  # an unwritable folder is known now, and not after an hour
        self._scratch.unlink()

    def leave(self):
        """Remove the folder, if it was made here and nothing came of it."""
        with contextlib.suppress(OSError):
            if self._made:
                self._here.rmdir()

    def close(self):
        if self._temporary is not None:
            self._temporary.cleanup()

    def file(self, seed: int) -> Target:
        return within(self.path, self._name(seed))

    def here(self, seed: int) -> Path:
        """On this disk."""
        return self._here / self._name(seed)

    def _name(self, seed: int) -> str:
        folder = f"{seed // 1000 * 1000:06d}/" if self.subdirs else ""
        return f"{folder}{seed:06d}{self.suffix}"

    def write(self, seed: int, array: np.ndarray, about: dict[str, Any]):
        """Save one seed's array [C, H, W]: a uint8 picture as PNG, with `about` as text; anything else as .npy."""
        target, temporary = self.here(seed), self._scratch.with_name(f"{self._scratch.name}-{seed}")
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
        if isinstance(self.path, str):
            remote.put(self.path, {self._name(seed): target})
            self._forget(target)

    def _forget(self, copy: Path):
        if not self._keep:
            copy.unlink()

    def differences(self, seed: int, shape: tuple[int, ...], about: dict[str, Any]) -> list[str] | None:
        """What of `about` is otherwise in the file that is there for a seed; None if none is there that is whole.

        A whole one has the shape [C, H, W], and does not say that it is another seed's. Arrays say nothing, and what an
        older version did not write is not compared.
        """
        with self._brought(seed) as path:
            return self._differences(seed, path, shape, about) if path.is_file() else None

    @contextlib.contextmanager
    def _brought(self, seed: int) -> Iterator[Path]:
        """Where the file of a seed is on this disk, if there is one."""
        path = self.here(seed)
        if not isinstance(self.path, str):
            yield path
            return
        with contextlib.suppress(remote.NotThereError):
            file = remote.open_remote(str(self.file(seed)))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file.read(0, file.size))
        yield path
        if path.exists():
            self._forget(path)

    def _differences(self, seed: int, path: Path, shape: tuple[int, ...], about: dict[str, Any]) -> list[str] | None:
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


def image_of(array: np.ndarray) -> Image.Image:
    """Of uint8 [C, H, W], with C 1 or 3. Raises: PictureError."""
    channels = array.shape[0]
    if channels not in MODES:
        raise PictureError(f"images of {channels} channels cannot be PNG files; --latents saves them as arrays")
    return Image.fromarray(array.transpose(1, 2, 0) if channels > 1 else array[0], MODES[channels])


def _note(about: dict[str, Any]) -> PngInfo:
    note = PngInfo()
    for name, value in about.items():
        note.add_text(name, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    return note


def contact_sheet(paths: Sequence[Path], target: Target):
    """One picture of the first ON_A_SHEET of many, in rows, as square as it gets. Raises: PictureError, OSError."""
    images = []
    for path in paths[:ON_A_SHEET]:
        try:
            with Image.open(path) as opened:
                images.append(opened.copy())
        except OSError as error:
            raise PictureError(f"{path}: is no picture ({error}); remove it") from None
    if len(sizes := {(image.size, image.mode) for image in images}) > 1:
        raise PictureError(f"{target}: {len(sizes)} kinds of pictures do not go on one sheet; leave out --grid")
    with whole_or_nothing(target, overwrite=True) as temporary:
        sheet_of(images).save(temporary, "PNG")


def sheet_of(images: Sequence[Image.Image | np.ndarray]) -> Image.Image:
    """Pictures of one kind, or uint8 arrays [C, H, W], in rows, as square as it gets. Raises: PictureError."""
    tiles = [image if isinstance(image, Image.Image) else image_of(image) for image in images]
    width, height = tiles[0].size
    scale = max(1, -(-TILE // width))
    width, height = width * scale, height * scale
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = -(-len(tiles) // columns)
    size = columns * (width + GAP) + GAP, rows * (height + GAP) + GAP
    sheet = Image.new(tiles[0].mode, size, "white")
    for i, tile in enumerate(tiles):
        place = GAP + i % columns * (width + GAP), GAP + i // columns * (height + GAP)
        sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet
