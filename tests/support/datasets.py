"""Datasets as NVlabs' dataset_tool.py writes them, of a few small pictures."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image


def write_dataset(path: Path, images: np.ndarray, labels: list[int] | None = None) -> Path:
    """uint8 images [N, C, H, W] as a ZIP of PNG files, float32 ones of NPY, with dataset.json."""
    names = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in enumerate(images):
            content = io.BytesIO()
            if image.dtype == np.uint8:
                picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
                PIL.Image.fromarray(picture).save(content, "PNG")
            else:
                np.save(content, image)
            names.append(f"{number:05d}.{'png' if image.dtype == np.uint8 else 'npy'}")
            archive.writestr(names[-1], content.getvalue())
        pairs = None if labels is None else list(map(list, zip(names, labels, strict=True)))
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return path


def small_dataset(path: Path, count: int = 24, classes: int = 4, channels: int = 3, size: int = 8) -> Path:
    """Random pictures of every class in turn."""
    images = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), np.uint8)
    return write_dataset(path, images, [number % classes for number in range(count)] if classes else None)
