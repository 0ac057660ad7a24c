"""From seeds to pictures, on all devices. Every seed has random draws of its own, whatever is computed beside it."""

import contextlib
import copy
import functools
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_edm2.config import EDM2Config
from jax_edm2.decoding import Decode
from jax_edm2.network import Precond
from jax_edm2.sampling import DEFAULT, Network, Trajectory, folded_pair
from jax_edm2.settings import Settings
from jax_edm2.torch_random import UINT32, TorchCPU, TorchCUDA

AXIS = "data"
PARTS = 8  # of a trajectory, if somebody wants to know how far it is: each costs what a loop does once, say 3 % in all


class Streams(Protocol):
    """A stream of random numbers for every seed."""

    def randn(self, shape: Sequence[int]) -> Any:
        """Standard normal float32 [seeds, *shape]."""

    def randint(self, high: int) -> Any:
        """Integers from 0 to high - 1, one per seed: [seeds]."""


class JaxStreams:
    """JAX's own generator, Threefry, with a key for every seed mod 2^32."""

    def __init__(self, seeds: Sequence[int]):
        self._keys = jax.vmap(jax.random.key)(np.asarray([seed % UINT32 for seed in seeds], np.uint32))
        self._draws = 0

    def randn(self, shape: Sequence[int]) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), jnp.float32))(self._next())

    def randint(self, high: int) -> jax.Array:
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, high))(self._next())

    def _next(self):
        self._draws += 1
        return jax.vmap(functools.partial(jax.random.fold_in, data=self._draws))(self._keys)


RNGS = {"torch-cuda": TorchCUDA, "torch-cpu": TorchCPU, "jax": JaxStreams}


@dataclass(frozen=True)
class Draw:
    """What a batch of images is made from."""

    noise: np.ndarray  # unit noise, float32 [N, C, H, W]
    classes: np.ndarray | None  # int64 [N]; None for an unconditional network
    churn_noise: np.ndarray | None  # unit noise, float32 [draws, N, C, H, W]

    @classmethod
    def of(
        cls,
        config: EDM2Config,
        seeds: Sequence[int],
        *,
        rng: str = "torch-cuda",
        class_idx: int | Sequence[int] | None = None,
        churn_draws: int = 0,
    ) -> "Draw":
        """In the order of NVlabs' generate_images.py: the noise, the class, the noise of every step that churns.

        class_idx, one for all or one for each, replaces the class after it has been drawn.
        """
        streams: Streams = RNGS[rng](seeds)
        shape = config.img_channels, config.img_resolution, config.img_resolution
        noise, classes = np.asarray(streams.randn(shape)), None
        if config.label_dim:
            classes = np.asarray(streams.randint(config.label_dim), np.int64)
            if class_idx is not None:
                classes[:] = class_idx
        churn = [np.asarray(streams.randn(shape)) for _ in range(churn_draws)]
        return cls(noise, classes, np.stack(churn) if churn else None)


@dataclass(frozen=True)
class Batch:
    """Images that have been computed, or soon will be: JAX returns before its devices are done."""

    seeds: list[int]
    classes: list[int] | None
    latents: jax.Array  # what the network draws, float32 [N, C, H, W]; beyond the number of seeds it is padding
    pictures: jax.Array | None  # uint8 [N, C, H, W], where there is a decoder


class Generator:
    """A network made ready on a set of devices: generator(seeds) yields batches, of `seeds` in their order.

    A seed is any integer; what is drawn from it depends on `rng` alone, not on what is computed beside it.
    Raises: ValueError if the guide or the decoder does not fit, the guide is missing, or the class is out of range.
    """

    def __init__(
        self,
        net: Precond,
        variables: Any,
        *,
        guide: Network | None = None,
        settings: Settings = DEFAULT,
        rng: str = "torch-cuda",
        class_idx: int | None = None,
        decoder: tuple[Decode, Any] | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """guide, settings: as for `sample`. rng: one of RNGS. class_idx: of every image; None draws one for each.

        decoder: of `make_decoder`; None gives no pictures. devices: by default all local ones.
        """
        if rng not in RNGS:
            raise ValueError(f"rng must be one of {', '.join(RNGS)}, not {rng!r}")
        self.config, self.settings, self.rng, self.class_idx = net.config, settings, rng, class_idx
        if class_idx is not None:
            self._check_class(class_idx)
        self.devices = list(devices or jax.local_devices())
        mesh = jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices)
        self._mesh = mesh
        everywhere, shared, churn = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
        self._replicated, self._shared, self._churn = (NamedSharding(mesh, p) for p in (everywhere, shared, churn))
        platform = self.devices[0].platform
        nets, both = folded_pair(net, variables, guide, settings, platform)
        self._variables = jax.device_put(both, self._replicated)
        self._fold = functools.partial(folded_pair, net, guide=guide, settings=settings, platform=platform)

        # Each device runs the very program that it would run alone: pictures do not depend on how many there are.
        def parallel(function, *in_specs):
            return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=shared, check_vma=False))

        trajectory = Trajectory(nets, settings)
        self.evaluations = trajectory.method.evaluations  # of the network, for every batch
        self._first = parallel(trajectory.first, shared)
        self._advance = parallel(trajectory.advance, everywhere, shared, everywhere, everywhere, shared, churn)
        self._decode = None
        if decoder is not None:
            image = (len(self.devices), self.config.img_channels, *2 * [self.config.img_resolution])
            jax.eval_shape(*decoder, jax.ShapeDtypeStruct(image, jnp.float32))  # does it fit?
            params = jax.device_put(decoder[1], self._replicated)
            self._decode = functools.partial(parallel(decoder[0], everywhere, shared), params)

    def with_variables(self, variables: Any) -> Self:
        """The same network with other weights, for which nothing is compiled again; None: with none, for later."""
        other = copy.copy(self)
        other._variables = None if variables is None else jax.device_put(self._fold(variables)[1], self._replicated)
        return other

    def batch_size(self, count: int, largest: int) -> int:
        """Images per device, for `count` of them in as few equal batches as there can be; at most `largest`."""
        return -(-count // (self.batches(count, largest) * len(self.devices))) if count else 0

    def batches(self, count: int, largest: int) -> int:
        """How many batches that takes."""
        return -(-count // (largest * len(self.devices)))

    def __call__(
        self,
        seeds: Sequence[int],
        batch: int = 32,
        classes: Sequence[int] | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> Iterator[Batch]:
        """Images of `seeds`, in batches of at most `batch` per device. The next is begun before one is yielded.

        classes: of each image, in place of `class_idx`. advance: is told how many evaluations of the network are done,
        of `evaluations` for a batch, by a thread and PARTS times a batch; pictures do not depend on it.
        Raises: ValueError if `batch` is less than 1, or there are not as many classes as seeds, or one is out of range.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        seeds = [int(seed) for seed in seeds]
        if classes is not None:
            if len(classes) != len(seeds):
                raise ValueError(f"{len(seeds)} seeds take as many classes, not {len(classes)}")
            for index in classes:
                self._check_class(index)
        size = self.batch_size(len(seeds), batch) * len(self.devices)
        pending, told = None, None if advance is None else _Watcher(advance)
        for start in range(0, len(seeds), size or 1):
            part = slice(start, start + size)
            with jax.set_mesh(self._mesh):  # whatever mesh the caller works on
                following = self._begin(seeds[part], self.class_idx if classes is None else classes[part], size, told)
            if pending is not None:
                yield pending
            pending = following
        if pending is not None:
            yield pending

    def _check_class(self, index: int):
        label_dim = self.config.label_dim
        if not 0 <= index < label_dim:
            known = f"classes 0 to {label_dim - 1}" if label_dim else "no classes"
            raise ValueError(f"class {index} is out of range: the network has {known}")

    def _begin(
        self, seeds: list[int], class_idx: int | Sequence[int] | None, size: int, told: "_Watcher | None"
    ) -> Batch:
        draw = Draw.of(self.config, seeds, rng=self.rng, class_idx=class_idx, churn_draws=self.settings.churn_draws)

        def put(array, sharding, axis=0):
            if array is None:
                return None
            padding = [(0, size - len(seeds) if i == axis else 0) for i in range(array.ndim)]
            return jax.device_put(np.pad(array, padding, mode="edge"), sharding)

        labels = None if draw.classes is None else np.eye(self.config.label_dim, dtype=np.float32)[draw.classes]
        state = self._first(put(draw.noise, self._shared))
        labels, churn_noise = put(labels, self._shared), put(draw.churn_noise, self._churn, axis=1)
        each = self.evaluations if told is None else -(-self.evaluations // PARTS)
        for start in range(0, self.evaluations, each):
            end = min(start + each, self.evaluations)
            bounds = np.int32(start), np.int32(end)
            state = self._advance(self._variables, state, *bounds, labels, churn_noise)
            if told is not None:
                told(state[0], end - start)
        latents = state[0]
        pictures = None if self._decode is None else self._decode(latents)
        return Batch(seeds, None if draw.classes is None else draw.classes.tolist(), latents, pictures)


class _Watcher:
    """Waits for arrays in a thread of its own, and says how much is done when one is there."""

    def __init__(self, advance: Callable[[int], object]):
        self._advance, self._queue = advance, queue.SimpleQueue[tuple[jax.Array, int]]()
        threading.Thread(target=self._watch, daemon=True).start()  # nobody waits for it

    def __call__(self, array: jax.Array, count: int):
        self._queue.put((array, count))

    def _watch(self):
        while True:
            array, count = self._queue.get()
            with contextlib.suppress(JaxRuntimeError):  # whoever takes the array meets it, too
                array.block_until_ready()
                self._advance(count)


def share(seeds: Sequence[int], index: int, count: int) -> list[int]:
    """The part of the seeds that process `index` of `count` takes: even parts, in order."""
    bounds = [math.ceil(len(seeds) * i / count) for i in (index, index + 1)]
    return list(seeds[slice(*bounds)])
