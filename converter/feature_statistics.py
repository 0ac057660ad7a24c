"""Feature statistics in files, as NVlabs' calculate_metrics.py has them, read without unpickling anything.

A .pkl is {num_images, METRIC: {mu, sigma}, ...}, of numpy's float64 arrays, METRIC fid or fd_dinov2. A .npz has mu and
sigma, of FID alone.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_edm2.evaluation import Statistics
from jax_edm2.files import Target, whole_or_nothing
from jax_edm2.messages import brief

from .errors import ConverterError
from .formats import numpy_pickle
from .formats.file import File, PickleError
from .formats.numpy_pickle import NDARRAY, ArrayRecord
from .formats.pickle_reader import Interpreter
from .formats.pickle_writer import Call, PickleWriter
from .snapshot import open_file

FID = "fid"
COUNT = "num_images"
MOST_FEATURES, MOST_IMAGES, MOST_METRICS = 8192, 2**48, 16
NPY_HEADER = 4096


class StatisticsError(ConverterError):
    """A file of feature statistics that is none, broken, or of impossible values."""


def read_statistics(path: Path) -> dict[str, Statistics]:
    """By metric. Raises: StatisticsError; ConverterError if there is no such file."""
    descriptor = open_file(path, "feature statistics (.pkl or .npz)")
    try:
        file = File(descriptor)
        found = _npz(file) if file.read(0, min(file.size, 2)) == b"PK" else _pickle(file)
        return {metric: Statistics(*arrays) for metric, arrays in found.items()}
    except (PickleError, ValueError) as error:
        raise StatisticsError(f"{path}: {error}") from None
    finally:
        os.close(descriptor)


def write_statistics(path: Target, found: Mapping[str, Statistics], *, overwrite: bool = False):
    """As .pkl, all of the same images, whole or not at all; NVlabs' tools read it.

    Raises: StatisticsError for statistics of different counts or none; FileExistsError, OSError.
    """
    counts = {statistics.count for statistics in found.values()}
    if len(counts) != 1 or None in counts:
        raise StatisticsError(f"{path}: statistics in one file are of the same images, and their number is known")
    content = {COUNT: counts.pop()} | {
        metric: {"mu": _array(each.mean), "sigma": _array(each.covariance)} for metric, each in found.items()
    }
    with whole_or_nothing(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        PickleWriter(file.write, protocol=4).dump(content)
        file.flush()
        os.fsync(file.fileno())


def _pickle(file: File) -> dict[str, tuple[np.ndarray, np.ndarray, int | None]]:
    """Raises: PickleError, ValueError."""
    interpreter = Interpreter(
        file,
        0,
        file.size,
        globals_=frozenset(numpy_pickle.CALLS) | {NDARRAY},
        calls=dict(numpy_pickle.CALLS),
        builds=dict(numpy_pickle.BUILDS),
    )
    content = interpreter.run()
    if interpreter.position != file.size:
        raise ValueError(f"{file.size - interpreter.position} bytes follow the end of its pickle")
    if not isinstance(content, dict) or len(content) > MOST_METRICS:
        raise ValueError("is no file of feature statistics: it has no dictionary of metrics")
    count = content.pop(COUNT, None)
    if count is not None and (type(count) is not int or not 2 <= count <= MOST_IMAGES):
        raise ValueError(f"{COUNT} is {brief(count)}")
    if not content:
        raise ValueError("has statistics of no metric")
    found = {}
    for metric, values in content.items():
        if not isinstance(values, dict) or values.keys() != {"mu", "sigma"}:
            raise ValueError(f"is no file of feature statistics: {brief(metric)} is not mu and sigma")
        mu, sigma = (_read(file, f"{metric}.{name}", values[name]) for name in ("mu", "sigma"))
        found[metric] = mu, sigma, count
    return found


def _read(file: File, name: str, record: Any) -> np.ndarray:
    if not isinstance(record, ArrayRecord) or record.dtype is None or record.data is None:
        raise ValueError(f"{brief(name)} is no array")
    if record.dtype.code != "f8" or len(record.shape) > 2 or max(record.shape, default=0) > MOST_FEATURES:
        what = f"{record.dtype.code!a} of {list(record.shape)}"
        raise ValueError(f"{brief(name)} is {what}, not float64 of {MOST_FEATURES:,} features at most")
    return np.frombuffer(file.read(record.data.offset, record.data.length), "<f8").reshape(record.shape)


def _npz(file: File) -> dict[str, tuple[np.ndarray, np.ndarray, int | None]]:
    """Raises: ValueError."""
    try:
        with os.fdopen(os.dup(file.descriptor), "rb") as stream, zipfile.ZipFile(stream) as archive:
            return {FID: (_member(archive, "mu", 1), _member(archive, "sigma", 2), None)}
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise ValueError(f"is no .npz that can be read: {' '.join(str(error).split())[:100]}") from None


def _member(archive: zipfile.ZipFile, name: str, dimensions: int) -> np.ndarray:
    entries = [entry for entry in archive.infolist() if entry.filename == f"{name}.npy"]
    if len(entries) != 1:
        raise ValueError(f"has {len(entries)} arrays {name}, not one")
    most = 8 * MOST_FEATURES**dimensions + NPY_HEADER
    if entries[0].file_size > most:
        raise ValueError(f"{name} has {entries[0].file_size:,} bytes, and may have {most:,}")
    with archive.open(entries[0]) as member:
        data = member.read(most + 1)  # whatever its entry says
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=NPY_HEADER)
    except (ValueError, KeyError, SyntaxError, EOFError, RecursionError) as error:
        raise ValueError(f"{name} is no array that can be read: {' '.join(str(error).split())[:100]}") from None
    if dtype.str not in ("<f8", "<f4") or len(shape) != dimensions or fortran:
        raise ValueError(f"{name} is {dtype.str!a:.20} of {list(shape)}{' in Fortran order' * fortran}, not float64")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"{name} says {list(shape)}, and has {len(data) - stream.tell():,} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape).astype(np.float64)


def _array(value: np.ndarray) -> Call:
    return numpy_pickle.pickled("f8", value.shape, np.ascontiguousarray(value, "<f8").tobytes())
