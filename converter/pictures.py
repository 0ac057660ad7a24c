"""Pictures of arrays, and contact sheets of them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jax_edm2.files import Target, whole_or_nothing

from .errors import ConverterError

MODES = {1: "L", 3: "RGB"}  # by channels
ON_A_SHEET = 400  # pictures
TILE, GAP = 48, 2  # pixels: small pictures are enlarged to at least TILE


class PictureError(ConverterError):
    """A picture that cannot be written or read."""


def image_of(array: np.ndarray) -> Image.Image:
    """Of uint8 [C, H, W], with C 1 or 3. Raises: PictureError."""
    channels = array.shape[0]
    if channels not in MODES:
        raise PictureError(f"images of {channels} channels cannot be PNG files; --latents saves them as arrays")
    return Image.fromarray(array.transpose(1, 2, 0) if channels > 1 else array[0], MODES[channels])


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
