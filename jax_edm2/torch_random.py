"""torch's random streams, in numpy: what `torch.randn` and `torch.randint` give for a seed, without torch.

NVlabs' generate_images.py draws every image from a generator of its own, on the GPU it runs on. Both classes hold one
generator per seed and draw from all of them:

    streams = TorchCUDA([0, 1, 2])
    noise = streams.randn((4, 64, 64))  # float32 [3, 4, 64, 64]
    labels = streams.randint(1000)  # int64 [3]
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

UINT32 = 2**32


class TorchCPU:
    """`torch.Generator("cpu")`, seeded with seed mod 2^32: the Mersenne Twister MT19937.

    randn within 1e-6 of torch, whose logarithms and cosines are its own approximations; randint equal.
    """

    def __init__(self, seeds: Sequence[int]):
        self._generators = []
        for seed in seeds:
            generator = np.random.MT19937()
            # As torch seeds: init_genrand of MT19937's authors.
            generator._legacy_seeding(seed % UINT32)
            self._generators.append(generator)
        self._spare: list[float | None] = [None] * len(self._generators)

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal float32 [seeds, *shape]."""
        count = math.prod(shape)
        values = np.zeros((len(self._generators), count), np.float32)
        for i in range(len(values)):
            values[i] = self._randn(i, count)
        return values.reshape(len(values), *shape)

    def randint(self, high: int) -> np.ndarray:
        """Integers from 0 to high - 1, high < 2^32: one per seed, int64 [seeds]."""
        return np.array([int(generator.random_raw()) % high for generator in self._generators], np.int64)

    def _randn(self, i: int, count: int) -> np.ndarray:
        if count < 16:  # torch goes another way here, in double precision
            return np.array([self._scalar(i) for _ in range(count)], np.float32)
        uniform = self._uniform(i, count)
        values = _box_muller_16(uniform[: count - count % 16])
        if count % 16:  # the last 16 are drawn anew
            values = np.append(values, np.zeros(count % 16, np.float32))
            values[-16:] = _box_muller_16(self._uniform(i, 16))
        return values

    def _uniform(self, i: int, count: int) -> np.ndarray:
        """float32 in [0, 1), from 24 bits each."""
        bits = self._generators[i].random_raw(count).astype(np.uint32)
        return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _scalar(self, i: int) -> float:
        """One value of at::normal_distribution<double>, which makes two at a time and keeps the second."""
        spare, self._spare[i] = self._spare[i], None
        if spare is not None:
            return spare
        turn, length = (self._double(i) for _ in range(2))
        radius = math.sqrt(-2 * math.log1p(-length))
        self._spare[i] = radius * math.sin(2 * math.pi * turn)
        return radius * math.cos(2 * math.pi * turn)

    def _double(self, i: int) -> float:
        high, low = (int(self._generators[i].random_raw()) for _ in range(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller_16(uniform: np.ndarray) -> np.ndarray:
    """Normal values from groups of 16 uniform ones: eight radii and eight angles, eight cosines and eight sines."""
    groups = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - groups[:, 0]))
    angle = np.float32(2 * math.pi) * groups[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


class TorchCUDA:
    """`torch.Generator("cuda")`, seeded with seed mod 2^32: Philox4x32-10 (Salmon et al., SC 2011).

    Tensors with more elements than the GPU has threads depend on that number; those of EDM2 have fewer everywhere.
    """

    BLOCK = 256  # threads

    def __init__(self, seeds: Sequence[int], threads: int = 108 * 2048):
        """threads: multiprocessors times threads of each; 108 x 2048 on an A100."""
        self._keys = np.array([seed % UINT32 for seed in seeds], np.uint64)
        self._max_blocks = threads // self.BLOCK
        self._calls = 0  # the generators' offset / 4

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal float32 [seeds, *shape]."""
        count = math.prod(shape)
        if not count:
            return np.zeros((len(self._keys), *shape), np.float32)
        words = self._words(count)
        if count <= self._threads(count):  # of each thread's four values only the first is used
            words = words[..., :2]
        x, y = words[..., 0::2].astype(np.float32), words[..., 1::2].astype(np.float32)
        # Each in one rounding, as fused on the GPU.
        u = (x * np.float64(2.0**-32) + 2.0**-33).astype(np.float32)
        turn = np.float64(np.float32(2 * math.pi * 2.0**-32))
        v = (y * turn + turn / 2).astype(np.float32)
        radius = np.sqrt(-2 * np.log(u))
        values: Any = np.stack([radius * np.sin(v), radius * np.cos(v)], axis=-1).reshape(words.shape)
        # A thread's values lie a whole grid apart.
        values = values.reshape(len(values), -1, self._threads(count), values.shape[-1]).swapaxes(2, 3)
        return values.reshape(len(values), -1)[:, :count].reshape(-1, *shape)

    def randint(self, high: int) -> np.ndarray:
        """Integers from 0 to high - 1, high < 2^28: one per seed, int64 [seeds]."""
        return self._words(1)[:, 0, 0].astype(np.int64) % high

    def _threads(self, count: int) -> int:
        """How many threads torch starts for `count` elements."""
        return min(-(-count // self.BLOCK), self._max_blocks) * self.BLOCK

    def _words(self, count: int) -> np.ndarray:
        """uint32 [seeds, rounds x threads, 4] that a kernel over `count` elements takes."""
        threads = self._threads(count)
        rounds = -(-count // (4 * threads))
        calls = np.repeat(np.arange(self._calls, self._calls + rounds, dtype=np.uint64), threads)
        thread = np.tile(np.arange(threads, dtype=np.uint64), rounds)
        self._calls += rounds
        return _philox(calls, thread, self._keys[:, None])


def _philox(counter0: np.ndarray, counter2: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox4x32-10 of the counters (counter0, 0, counter2, 0) and keys (key, 0): uint32 values [..., 4]."""
    low = np.uint64(UINT32 - 1)
    zero = np.uint64(0)
    words: Any = counter0, zero, counter2, zero
    c0, c1, c2, c3 = words
    key0, key1 = key, zero
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ key0, p1 & low, (p0 >> 32) ^ c3 ^ key1, p0 & low
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & low, (key1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)
