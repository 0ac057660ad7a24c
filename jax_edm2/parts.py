"""Arrays on the devices of several processes, of which each process reads its share of a file and no more."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jax_edm2.safetensors_format import CODES, Box, Entry


class Parts:
    """How an array comes of a tensor. entry: what to read `boxes` of; `array` makes the array of what was read.

    A part that is in one piece in the file is read as it is. Where any device's part is not, as of splits along another
    axis than the first, every device reads an equal piece of the file, and the devices exchange what they read: all
    processes then have to call `array` at the same point.
    """

    def __init__(self, entry: Entry, sharding: Sharding):
        self._shape, self._sharding = entry.shape, sharding
        boxes = [_box(index, entry.shape) for index in sharding.devices_indices_map(entry.shape).values()]
        self._direct = all(entry.in_one_piece(box) for box in boxes)
        self.entry = entry if self._direct else entry.flat
        self._read_shape, self._read_sharding = (
            (entry.shape, sharding) if self._direct else _pieces(entry.shape, sharding)
        )
        indices = self._read_sharding.addressable_devices_indices_map(self._read_shape).values()
        self.boxes = sorted({self._box(index) for index in indices})

    def array(self, parts: Mapping[Box, np.ndarray], dtype: Any) -> jax.Array:
        """parts: of each of `boxes`, what was read. dtype: of the array; None: as stored."""
        dtype = jax.dtypes.canonicalize_dtype(CODES[self.entry.dtype].numpy if dtype is None else dtype)
        # Integers, because an exchange may be a sum with zeros, and -0.0 + 0.0 is another value.
        carried = dtype if self._direct else np.dtype(f"uint{8 * dtype.itemsize}")

        def part(index):
            found = parts[self._box(index)].astype(dtype, copy=False).view(carried)
            return found if self._direct else np.pad(found, (0, index[0].stop - index[0].start - len(found)))

        array = jax.make_array_from_callback(self._read_shape, self._read_sharding, part, dtype=carried)
        return array if self._direct else _exchanged(self._shape, self._sharding, self._read_sharding, dtype)(array)

    def _box(self, index: tuple[slice, ...] | None) -> Box:
        """What there is of a part: of the last pieces that may be less."""
        box = _box(index, self._read_shape)
        return tuple((min(first, n), min(last, n)) for (first, last), n in zip(box, self.entry.shape, strict=True))


def _box(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """What slices of a tensor mean."""
    return tuple(each.indices(length)[:2] for each, length in zip(index or (), shape, strict=True))


def _pieces(shape: tuple[int, ...], sharding: Sharding) -> tuple[tuple[int, ...], NamedSharding]:
    """Shape and sharding of an array of one axis, equally long on every device, with room for all values."""
    devices = np.array(list(sharding.devices_indices_map(shape)))
    length = -(-math.prod(shape) // devices.size) * devices.size
    return (length,), NamedSharding(Mesh(devices, ("pieces",)), PartitionSpec("pieces"))


@functools.lru_cache(256)  # of a network's tensors many are alike
def _exchanged(shape: tuple[int, ...], sharding: Sharding, pieces: NamedSharding, dtype: np.dtype) -> Any:
    """A program: from an array of pieces, as integers, to the tensor. On the way it is whole on every device."""
    everywhere = NamedSharding(pieces.mesh, PartitionSpec())

    def function(values: jax.Array) -> jax.Array:
        values = jax.lax.with_sharding_constraint(values, everywhere)
        values = jax.lax.with_sharding_constraint(values[: math.prod(shape)].reshape(shape), sharding)
        return jax.lax.bitcast_convert_type(values, dtype)

    return jax.jit(function, out_shardings=sharding)
