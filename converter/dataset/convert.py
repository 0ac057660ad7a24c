"""Pictures, cropped and scaled to one size, as uncompressed PNG files."""

import io
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from jax_edm2.dataset_files import MOST_SIDE
from jax_edm2.files import Target

from ..errors import UsageError
from ..progress import Progress, Warn, silent
from ..threads import ahead
from .archive import PNG, Entry, Report, numbered, write_dataset
from .source import Source, pictures, quiet
from .transforms import TRANSFORMS, transform_of

CHANNELS = 3
SIDES = f"pictures must be square, with sides that are a power of two and at most {MOST_SIDE}"


@dataclass(frozen=True)
class ConvertRequest:
    """A dataset that is to be made of a folder or ZIP of pictures.

    dest: a ZIP by its name, which `force` replaces, else a folder that is empty or not there. transform: one of
    TRANSFORMS, by default the whole picture is scaled. resolution: (width, height) of the pictures, by default their
    own. max_images: so many of the source are taken, in the order of their names.
    Raises: UsageError for values that make no sense in themselves.
    """

    source: Path
    dest: Target
    transform: str | None = None
    resolution: tuple[int, int] | None = None
    max_images: int | None = None
    force: bool = False

    def __post_init__(self):
        if self.transform not in (None, *TRANSFORMS):
            raise UsageError(f"--transform must be one of {', '.join(TRANSFORMS)}, not {self.transform!r:.100}")
        if self.transform is not None and self.resolution is None:
            raise UsageError(f"--transform {self.transform} needs --resolution, such as 64x64")
        if self.resolution is None:
            return
        width, height = self.resolution
        wide = self.transform == "center-crop-wide"  # which adds black above and below
        if not (0 < height <= width if wide else width == height):
            raise UsageError(f"--resolution {width}x{height}: pictures must be {'wide' if wide else 'square'}")
        if not _is_side(width):
            raise UsageError(f"--resolution {width}x{height}: {SIDES}")


def convert(request: ConvertRequest, *, warn: Warn = warnings.warn, progress: Progress = silent) -> Report:
    """Write the dataset: 00000/img00000000.png and so on, RGB, and dataset.json with the labels.

    warn: is given a line for labels that are lacking, or of files that are. progress: of the pictures.
    Raises: UsageError, ConverterError, OSError.
    """
    began = time.perf_counter()
    source = Source(request.source, pictures(), request.max_images, warn)
    transform = transform_of(request.transform, request.resolution)
    side = None if request.resolution is None else request.resolution[0]  # else the first picture's

    def converted(number: int) -> tuple[int, int, bytes] | None:
        image = transform(source.picture(number))
        return None if image is None else (*image.size, png(image))

    def entries() -> Iterator[Entry | None]:
        nonlocal side
        for number, found in enumerate(ahead(converted, range(len(source)))):
            if found is None:
                yield None
                continue
            width, height, content = found
            if side is None and (width != height or not _is_side(width)):
                raise source.wrong(number, f"is of {width} x {height}, and {SIDES}; give --resolution")
            side = side or width
            if width != side or height != side:
                others = f"others are of {side} x {side}"
                raise source.wrong(number, f"is of {width} x {height}, and {others}; --resolution makes them alike")
            yield Entry(numbered(number, PNG), content, source.labels[number])

    with quiet(), progress(str(request.dest), len(source)) as advance:
        count, classes = write_dataset(request.dest, entries(), advance, force=request.force)
    assert side is not None  # of one picture at least
    shape, seconds = (CHANNELS, side, side), time.perf_counter() - began
    return Report(request.source, request.dest, count, len(source) - count, classes, shape, seconds)


def _is_side(length: int) -> bool:
    return 0 < length <= MOST_SIDE and not length & (length - 1)


def png(image: Image.Image) -> bytes:
    """Uncompressed, which is fast to read."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=0)
    return stream.getvalue()
