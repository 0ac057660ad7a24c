"""Pictures to the latents of a VAE, and back, on all devices that JAX has."""

import io
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_edm2.files import Target
from jax_edm2.vae import load_vae, load_vae_encoder

from ..devices import gave_up
from ..errors import UsageError
from ..pictures import MODES, image_of
from ..progress import Progress, Warn, silent
from ..sources import Fetching
from ..threads import ahead
from ..vae import PUBLISHED, open_vae
from .archive import NPY, PNG, Entry, Report, numbered, write_dataset
from .convert import CHANNELS, png
from .source import ARRAYS, DatasetToolError, Source, pictures, quiet

AXIS = "data"

Part = tuple[Any, ...]  # what one image is computed from: arrays


@dataclass(frozen=True)
class EncodeRequest:
    """Latents that are to be made of a folder or ZIP of pictures.

    dest, max_images, force: as of a ConvertRequest. vae: diffusers' folder, a safetensors file, the URL of either, or a
    name on Hugging Face. batch: images that are computed at once on a device, 1 or more.
    Raises: UsageError for another batch.
    """

    source: Path
    dest: Target
    vae: str = PUBLISHED
    max_images: int | None = None
    batch: int = 4
    force: bool = False
    fetching: Fetching = field(default_factory=Fetching)

    def __post_init__(self):
        if self.batch < 1:
            raise UsageError(f"--batch must be at least 1, not {self.batch}")


@dataclass(frozen=True)
class DecodeRequest(EncodeRequest):
    """Pictures that are to be made of a folder or ZIP of latents. seed: of the noise, from 0 to 2^32 - 1."""

    seed: int = 0


def encode(request: EncodeRequest, *, warn: Warn = warnings.warn, progress: Progress = silent) -> Report:
    """Write 00000/img-mean-std-00000000.npy and so on, float32 [2 C, h, w], and dataset.json with the labels.

    The VAE gets pictures from 0 to 1, as in NVlabs' code.
    warn: is given a line for labels that are lacking, or of files that are. progress: of the pictures.
    Raises: UsageError, ConverterError, OSError.
    """
    source = Source(request.source, pictures(), request.max_images, warn)
    encoder, params = open_vae(request.vae, request.fetching, load_vae_encoder)
    channels, scale = encoder.config.in_channels, encoder.config.scale
    if channels != CHANNELS:
        raise DatasetToolError(f"{request.vae}: encodes {channels} channels, and pictures have {CHANNELS}")

    def read(number: int) -> Part:
        image = source.picture(number)
        if image.width % scale or image.height % scale:
            raise source.wrong(number, f"is of {image.width} x {image.height}, and the VAE takes multiples of {scale}")
        return (np.asarray(image),)

    def encoded(params: Any, pixels: jax.Array) -> jax.Array:
        return encoder(params, pixels.transpose(0, 3, 1, 2).astype(jnp.float32) / 255)

    return _write(request, source, read, (encoded, params), npy, NPY, progress)


def decode(request: DecodeRequest, *, warn: Warn = warnings.warn, progress: Progress = silent) -> Report:
    """Write 00000/img00000000.png and so on, of latents mean + std noise, and dataset.json with the labels.

    The noise of an image is of its number and the seed, on any number of devices.
    warn, progress, Raises: as for `encode`.
    """
    source = Source(request.source, ARRAYS, request.max_images, warn)
    decoder, params = open_vae(request.vae, request.fetching, load_vae)
    channels = decoder.config.latent_channels
    if decoder.config.out_channels not in MODES:
        raise DatasetToolError(f"{request.vae}: decodes to {decoder.config.out_channels} channels: no pictures")

    def read(number: int) -> Part:
        mean_std = source.array(number)
        if len(mean_std) != 2 * channels:
            raise source.wrong(
                number,
                f"is {list(mean_std.shape)}, and the VAE decodes means and deviations of {channels} channels each",
            )
        return mean_std, np.int32(number)

    def decoded(params: Any, mean_std: jax.Array, numbers: jax.Array) -> jax.Array:
        mean, std = jnp.split(mean_std, 2, axis=1)
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(request.seed), number))(numbers)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
        return jnp.clip(decoder(params, mean + std * noise), 0, 1) * 255

    def save(pixels: np.ndarray) -> bytes:
        return png(image_of(pixels.astype(np.uint8)))

    return _write(request, source, read, (decoded, params), save, PNG, progress)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _write(
    request: EncodeRequest,
    source: Source,
    read: Callable[[int], Part],
    network: tuple[Callable[..., jax.Array], Any],
    save: Callable[[np.ndarray], bytes],
    kind: str,
    progress: Progress,
) -> Report:
    """Read every image, compute it with (function, params), and save what comes of it."""
    began, shape = time.perf_counter(), ()

    def alike() -> Iterator[Part]:
        first: tuple[int, ...] | None = None
        for number, part in enumerate(ahead(read, range(len(source)))):
            first = first or part[0].shape
            if part[0].shape != first:
                found, others = (f"{list(s)}" for s in (part[0].shape, first))
                raise source.wrong(number, f"is {found}, and {source.names[0]!a:.100} is {others}: all must be alike")
            yield part

    def entries() -> Iterator[Entry]:
        nonlocal shape
        computed = on_all_devices(*network, alike(), min(request.batch, len(source)))
        for number, array in enumerate(computed):
            if not np.isfinite(array).all():
                raise source.wrong(number, f"becomes NaN or infinite: {request.vae} is no VAE for it")
            shape = array.shape
            yield Entry(numbered(number, kind), save(array), source.labels[number])

    try:
        with quiet(), jax.default_matmul_precision("highest"), progress(str(request.dest), len(source)) as advance:
            count, classes = write_dataset(request.dest, entries(), advance, force=request.force)
    except JaxRuntimeError as error:
        raise DatasetToolError(gave_up(error, "try a smaller --batch")) from None
    return Report(request.source, request.dest, count, 0, classes, shape, time.perf_counter() - began)


def on_all_devices(
    function: Callable[..., jax.Array], params: Any, parts: Iterator[Part], batch: int
) -> Iterator[np.ndarray]:
    """function(params, *arrays) of every part, in order: arrays have a part in every row, and so has the result.

    Each device computes `batch` at once, the last time with repetitions. The next are begun before any are given.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    everywhere, shared = PartitionSpec(), PartitionSpec(AXIS)

    def parallel(params: Any, arrays: list[jax.Array]) -> jax.Array:
        return function(params, *arrays)

    compute = jax.jit(
        jax.shard_map(parallel, mesh=mesh, in_specs=(everywhere, shared), out_specs=shared, check_vma=False)
    )
    params = jax.device_put(params, NamedSharding(mesh, everywhere))
    size = batch * len(devices)
    pending: tuple[jax.Array, int] | None = None
    while group := list(itertools.islice(parts, size)):
        padded = group + [group[-1]] * (size - len(group))
        arrays = [jax.device_put(np.stack(column), NamedSharding(mesh, shared)) for column in zip(*padded, strict=True)]
        following = compute(params, arrays), len(group)
        if pending is not None:
            yield from np.asarray(pending[0])[: pending[1]]
        pending = following
    if pending is not None:
        yield from np.asarray(pending[0])[: pending[1]]
