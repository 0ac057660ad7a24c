"""Training data as NVlabs' dataset_tool.py writes it: a folder or ZIP of PNG and NPY files, and dataset.json.

Pictures are uint8 [C, H, W], latents float32 [2 C, h, w], means and then standard deviations. Files are numbered in the
order of their names. Needs no jax.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL.Image

from jax_edm2.dataset_files import LABELS, MOST_SIDE, DatasetError, open_files, read_labels, read_npy

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_BYTES = 64 * 2**20  # of one file


class ImageDataset:
    """Images and labels by number, read when they are asked for, from many threads or processes.

    shape: [C, H, W] of every image. dtype: uint8 of pictures, float32 of latents. label_dim: classes, 0 without.
    """

    def __init__(self, path: str | os.PathLike, *, labels: bool = True, most: int | None = None, seed: int = 0,
                 flip: bool = False):  # fmt: skip
        """labels: use those of dataset.json, if it has any. most: a random choice of so many images, by `seed`, as
        NVlabs' --max-size makes it. flip: every image is there a second time, mirrored left to right.

        Raises: DatasetError, OSError.
        """
        self.path = Path(path)
        self._files = open_files(self.path)
        self.names = sorted(name for name in self._files.names if _suffix(name) in (*PICTURES, ".npy"))
        if not self.names:
            raise DatasetError(f"{self.path}: holds no images: dataset_tool.py writes .png or .npy files")
        classes = self._labels() if labels else None
        self.label_dim = 0 if classes is None else int(classes.max()) + 1
        chosen = np.arange(len(self.names), dtype=np.int64)
        if most is not None and most < len(chosen):
            if most < 1:
                raise DatasetError(f"{self.path}: a choice of {most} images is none")
            np.random.RandomState(seed % 2**31).shuffle(chosen)
            chosen = np.sort(chosen[:most])
        self._chosen, self._classes, self._flip = chosen, classes, flip
        first = self._read(self.names[0], None)
        self.shape, self.dtype = first.shape, first.dtype

    def __len__(self) -> int:
        return len(self._chosen) * (1 + self._flip)

    def __getitem__(self, number: Any) -> tuple[np.ndarray, np.ndarray]:
        """(image, label), label float32 [label_dim]. Raises: DatasetError; IndexError beyond the end."""
        turn, place = divmod(int(number), len(self._chosen))
        if not 0 <= turn <= self._flip:
            raise IndexError(f"{self.path}: has {len(self)} images, and no number {number}")
        which = self._chosen[place]
        image = self._read(self.names[which], self.shape)
        if image.dtype != self.dtype:
            raise self._wrong(self.names[which], f"is {image.dtype}, and {self.names[0]!a:.100} is {self.dtype}")
        label = np.zeros(self.label_dim, np.float32)
        if self._classes is not None:
            label[self._classes[which]] = 1
        return image[:, :, ::-1].copy() if turn else image, label

    def _wrong(self, name: str, what: str) -> DatasetError:
        return DatasetError(f"{self.path}: {name!a:.200} {what}")

    def _read(self, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
        """An image, which must have this shape."""
        data = self._files.read(name, MOST_BYTES)
        found = read_npy(data) if _suffix(name) == ".npy" else _picture(data, shape)
        if isinstance(found, str):
            raise self._wrong(name, found)
        if shape is not None and found.shape != shape:
            raise self._wrong(
                name, f"is {list(found.shape)}, and {self.names[0]!a:.100} is {list(shape)}: all must be alike"
            )
        return found

    def _labels(self) -> np.ndarray | None:
        """The class of every image, int64, or None if there are no labels."""
        found = read_labels(self._files)
        if found is None:
            return None
        if missing := [name for name in self.names if name not in found]:
            raise self._wrong(
                LABELS,
                f"has no label for {missing[0]!a:.100} and {len(missing) - 1} others; leave labels out, or add them",
            )
        return np.array([found[name] for name in self.names], np.int64)


def batches(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
    threads: int = 4,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches without end: images [batch_size, C, H, W] and labels [batch_size, label_dim].

    Every image comes once in each pass, and passes differ in order. The order is a function of seed and position alone:
    start, in images, is where a training goes on that has seen so many. part: (this, of how many) processes, each of
    which gets its share of every batch. Shuffled and read by grain, in `threads` threads.
    Raises: DatasetError; ValueError for a batch that does not divide, a part that is none or a start below 0.
    """
    import grain

    this, count = part
    if batch_size < 1 or batch_size % count or start < 0 or not 0 <= this < count:
        raise ValueError(
            f"a batch of {batch_size} from image {start} on does not divide into {count} parts, or has no part {this}"
        )
    share = batch_size // count
    endless = grain.MapDataset.source(dataset).seed(seed).shuffle().repeat()

    def place(number: int) -> int:
        batch, within = divmod(number, share)
        return start + batch * batch_size + this * share + within

    ours = grain.MapDataset.source(_At(endless, place)).batch(share)
    return iter(ours.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2))))


class _At:
    """A sequence without end, at places of another."""

    def __init__(self, of: Any, place: Any):
        self._of, self._place = of, place

    def __len__(self) -> int:
        return 2**60

    def __getitem__(self, number: Any) -> Any:
        return self._of[self._place(int(number))]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _picture(data: bytes, shape: tuple[int, ...] | None) -> np.ndarray | str:
    """uint8 [C, H, W], or what is wrong."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if max(width, height) > MOST_SIDE or (shape is not None and (height, width) != shape[1:]):
                return f"is a picture of {width} x {height}" + (f", not {shape[2]} x {shape[1]}" if shape else "")
            if image.mode not in ("L", "RGB", "RGBA"):
                return f"is a picture of mode {image.mode!a:.20}, not L, RGB or RGBA"
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        return f"is no picture that can be read: {' '.join(str(error).split())[:100]}"
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
