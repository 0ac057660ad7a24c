"""How pictures are cropped and scaled: an RGB picture to another, or to None where it is too small."""

from collections.abc import Callable
from functools import partial

from PIL import Image
from PIL.Image import Resampling

TRANSFORMS = ("center-crop", "center-crop-wide", "center-crop-dhariwal")
BLACK = (0, 0, 0)

Transform = Callable[[Image.Image], Image.Image | None]


def transform_of(name: str | None, resolution: tuple[int, int] | None) -> Transform:
    """name: one of TRANSFORMS, which need a resolution (width, height); None scales to it, whatever the proportions."""
    if name is None or resolution is None:
        return partial(scale, resolution)
    return partial({"center-crop": crop, "center-crop-wide": crop_wide}.get(name, crop_dhariwal), resolution)


def scale(size: tuple[int, int] | None, image: Image.Image) -> Image.Image:
    """To a size, (width, height); None leaves it."""
    return image if size in (None, image.size) else image.resize(size or image.size, Resampling.LANCZOS)


def crop(size: tuple[int, int], image: Image.Image) -> Image.Image:
    """The largest square in the middle, scaled."""
    side = min(image.size)
    return _middle(image, side, side).resize(size, Resampling.LANCZOS)


def crop_wide(size: tuple[int, int], image: Image.Image) -> Image.Image | None:
    """Scaled to width x height, in the middle of a black square; None of what is too small for that.

    Of its height it keeps the share that `width` is of its width: so it does in NVlabs' code.
    """
    width, height = size
    kept = round(width * image.height / image.width)
    if image.width < width or kept < height:
        return None
    scaled = _middle(image, image.width, kept).resize(size, Resampling.LANCZOS)
    square = Image.new("RGB", (width, width), BLACK)
    square.paste(scaled, (0, (width - height) // 2))
    return square


def crop_dhariwal(size: tuple[int, int], image: Image.Image) -> Image.Image:
    """The square in the middle, as guided-diffusion makes ImageNet's (arXiv 2105.05233): halved, scaled, then cut."""
    side = size[0]
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    factor = side / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Resampling.BICUBIC)
    return _middle(image, side, side)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
