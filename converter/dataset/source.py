"""What a dataset is made of: pictures or arrays of a folder or ZIP, in the order of their names, with their labels."""

import contextlib
import io
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from jax_edm2.dataset_files import LABELS, DatasetError, open_files, read_labels, read_npy

from ..errors import ConverterError
from ..progress import Warn

ARRAYS = (".npy",)
MOST_BYTES = 256 * 2**20  # of one file
MOST_PIXELS = 89_478_485  # of one picture: from there on Pillow, too, takes it for a decompression bomb
NOT_OPENED = ("EPS",)  # by Ghostscript: a program, in another program


class DatasetToolError(ConverterError):
    """A source that is missing, broken or refused, or a destination that cannot be one."""


def pictures() -> Collection[str]:
    """How the names of pictures may end: with what Pillow knows."""
    PIL.Image.init()
    return PIL.Image.EXTENSION.keys()


class Source:
    """names: of the pictures or arrays, sorted. labels: the class of each, or None where one has none."""

    def __init__(self, path: Path, endings: Collection[str], most: int | None, warn: Warn):
        """endings: of the names that are taken. most: so many are, from the first. warn: is told what labels lack.

        Where there are no labels, folders' classes are the uppermost folders in it, sorted; of ZIPs nothing says them.
        Raises: DatasetToolError, OSError.
        """
        self.path = path
        if not path.exists():
            raise DatasetToolError(f"{path}: there is no such file or folder")
        try:
            self._files = open_files(path, links=True)
            labels = read_labels(self._files)
        except DatasetError as error:
            raise DatasetToolError(str(error)) from None
        names = sorted(name for name in self._files.names if f".{name.rpartition('.')[2].lower()}" in endings)
        if not names:
            kinds = ", ".join(sorted(endings)) if len(endings) < 4 else ".png, .jpg, .webp or others that Pillow reads"
            raise DatasetToolError(f"{path}: holds no files with the ending {kinds}")
        self.names = names[:most]
        if labels and (astray := sorted(labels.keys() - self._files.names)):
            warn(f"{path}: {LABELS} has labels of {len(astray):,} files that are not there, as of {astray[0]!a:.100}")
        if not labels:
            labels = _uppermost_folders(names) if path.is_dir() else {}
        self.labels = [labels.get(name) for name in self.names]
        lacking = [name for name, label in zip(self.names, self.labels, strict=True) if label is None]
        if labels and lacking:
            warn(
                f"{path}: {LABELS} has no label for {lacking[0]!a:.100} and {len(lacking) - 1:,} others: none will be "
                "written as long as any is lacking"
            )

    def __len__(self) -> int:
        return len(self.names)

    def wrong(self, number: int, what: str) -> DatasetToolError:
        return DatasetToolError(f"{self.path}: {self.names[number]!a:.200} {what}")

    def picture(self, number: int) -> PIL.Image.Image:
        """RGB, and nothing but its pixels. Raises: DatasetToolError."""
        formats = [name for name in PIL.Image.OPEN if name not in NOT_OPENED]
        try:
            with PIL.Image.open(io.BytesIO(self._read(number)), formats=formats) as image:
                width, height = image.size
                if width * height <= MOST_PIXELS:
                    return PIL.Image.fromarray(np.asarray(image.convert("RGB")))
        except DatasetError as error:
            raise DatasetToolError(str(error)) from None
        except Exception as error:  # Pillow raises whatever comes: SyntaxError, zlib.error, struct.error
            why = "of no kind that is known" if isinstance(error, PIL.UnidentifiedImageError) else _one_line(error)
            raise self.wrong(number, f"is no picture that can be read: {why}") from None
        raise self.wrong(number, f"is a picture of {width} x {height}, and {MOST_PIXELS:,} pixels are the most")

    def array(self, number: int) -> np.ndarray:
        """float32 [C, H, W]. Raises: DatasetToolError."""
        try:
            found = read_npy(self._read(number))
        except DatasetError as error:
            raise DatasetToolError(str(error)) from None
        if isinstance(found, str):
            raise self.wrong(number, found)
        if found.dtype != np.float32:
            raise self.wrong(number, f"holds {found.dtype}, not float32: encode writes latents")
        return found

    def _read(self, number: int) -> bytes:
        return self._files.read(self.names[number], MOST_BYTES)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """In the `with` body Pillow mends other people's pictures without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _uppermost_folders(names: list[str]) -> dict[str, int]:
    """Classes by the folders that files lie in, '' for none; no classes if there is one folder."""
    folders = {name: name.split("/")[0] if "/" in name else "" for name in names}
    numbers = {folder: number for number, folder in enumerate(sorted(set(folders.values())))}
    return {name: numbers[folder] for name, folder in folders.items()} if len(numbers) > 1 else {}
