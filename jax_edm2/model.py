"""A network with all that belongs to it, in one object: `jax_edm2.from_pretrained` makes it.

model = jax_edm2.from_pretrained("edm2-img512-s")
model.sample(range(4), classes=[1, 2, 3, 4]).to_pil()[0].save("one.png")
model.replace(variables=fine_tuned).save("mine.safetensors")
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.checkpoint import read_record, save
from jax_edm2.decoding import Decode, make_decoder
from jax_edm2.dtypes import not_finite
from jax_edm2.generation import Generator
from jax_edm2.inputs import check_images, check_sigma
from jax_edm2.network import Precond
from jax_edm2.record import Record
from jax_edm2.sampling import DEFAULT, Network
from jax_edm2.settings import Settings
from jax_edm2.shapes import Images, Labels, Sigma

if TYPE_CHECKING:
    from PIL.Image import Image

Decoder = tuple[Decode, Any]


@dataclass(frozen=True)
class Guide:
    """The guiding network, its variables, and what its checkpoint says of it."""

    net: Precond
    variables: Any
    record: Record


@dataclass(frozen=True)
class Samples:
    """What was drawn, for seeds in their order."""

    seeds: list[int]
    classes: list[int] | None  # None where the network has none
    latents: np.ndarray  # what the network gave, float32 [N, C, H, W]: images from -1 to 1, or latents of a VAE
    pictures: np.ndarray | None  # uint8 [N, 1 or 3, H, W]; None if latents alone were asked for

    def to_pil(self) -> "list[Image]":
        """The pictures, one for each seed. Raises: ValueError if there are none."""
        from PIL import Image

        if self.pictures is None:
            raise ValueError("latents are no pictures: sample without latents=True")
        if self.pictures.shape[1] not in (1, 3):
            raise ValueError(f"images of {self.pictures.shape[1]} channels are no pictures; take .latents")
        return [Image.fromarray(p.transpose(1, 2, 0) if len(p) == 3 else p[0]) for p in self.pictures]


@dataclass(frozen=True)
class Model:
    """A denoiser and its variables, with its record, its guide, the settings it is sampled with, and its decoder.

    Values do not change: `replace` gives another model. find_decoder gives what `make_decoder` does, when that is first
    needed: a VAE may have to be fetched. None is for networks that draw pixels.
    """

    net: Precond
    variables: Any
    record: Record
    settings: Settings = DEFAULT
    guide: Guide | None = None
    find_decoder: Callable[[], Decoder] | None = field(default=None, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def replace(self, **changes: Any) -> Self:
        """The same with other fields: `variables` that were fine-tuned, say, or other `settings`."""
        return dataclasses.replace(self, **changes)

    def denoise(self, x: Images, sigma: Sigma | float, class_labels: Labels | None = None) -> jax.Array:
        """D(x; sigma, labels) of the network itself, unguided: [N, C, H, W] in float32, as `Precond`; compiled.

        x [N, C, H, W]; sigma > 0, a noise level or [N] of them; class_labels one-hot [N, label_dim] or None.
        Raises: ValueError for inputs of another shape, or a sigma that is not positive.
        """
        check_images(self.net.config, x)
        check_sigma(sigma, x.shape[0])  # before jit hides its value
        if "denoise" not in self._kept:
            self._kept["denoise"] = jax.jit(self.net.apply)
        return self._kept["denoise"](self.variables, x, sigma, class_labels)

    def sample(
        self,
        seeds: "int | Sequence[int] | jax.Array",
        classes: int | Sequence[int] | None = None,
        *,
        num: int | None = None,
        batch: int = 32,
        rng: str = "torch-cuda",
        latents: bool = False,
        **settings: Any,
    ) -> Samples:
        """Samples, the same ones that edm2-sample draws for the seeds, on all devices.

        seeds: integers, or one key of `jax.random.key`, from which `num` seeds are drawn (by default as many as there
        are classes, or 1) and all else, with JAX's own generator. classes: one for all, or one for each; random ones by
        default. batch: most images at once on a device. rng: one of `jax_edm2.generation.RNGS`. latents: what the
        network gives is not decoded. settings: fields of `Settings`, in place of the model's own: num_steps=8, say.
        Raises: ValueError for what does not fit, or if the network gives NaN or infinite values; ConverterError for a
        VAE that cannot be had.
        """
        seeds, rng = _seeds(seeds, classes, num, rng)
        if isinstance(classes, int | np.integer):
            classes = [int(classes)] * len(seeds)
        elif classes is not None:
            classes = [int(index) for index in classes]
        if not seeds:
            raise ValueError("there are no seeds")
        found: list[np.ndarray] = []
        pictures: list[np.ndarray] = []
        drawn: list[int] = []
        with jax.default_matmul_precision("highest"):  # as edm2-sample; the activations' precision is the network's
            generator = self._generator(dataclasses.replace(self.settings, **settings), rng, latents)
            for images in generator(seeds, batch, classes):
                count = len(images.seeds)
                found.append(np.asarray(images.latents)[:count])
                drawn.extend(images.classes or ())
                if bad := [s for s, latent in zip(images.seeds, found[-1], strict=True) if not_finite(latent)]:
                    raise ValueError(f"the network gives values that are NaN or infinite for seed {bad[0]}")
                if images.pictures is not None:
                    pictures.append(np.asarray(images.pictures)[:count])
        decoded = np.concatenate(pictures) if pictures else None
        return Samples(seeds, drawn if self.net.config.label_dim else None, np.concatenate(found), decoded)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Record:
        """Write a checkpoint as `jax_edm2.save` does, with the record, and the guide beside it, as the record names it.

        Weights that have changed are said to be fine-tuned from what the record was of. A guide that is there is left,
        if it is this one. Returns the record that was written.
        Raises: CheckpointError, FileExistsError, OSError.
        """
        path, sampler = Path(path), self.record.sampler
        if self.guide is not None:
            name = sampler.guide or f"{path.stem}-guide{path.suffix}"
            sampler = dataclasses.replace(sampler, guide=name, guidance=self.settings.guidance)
            beside = path.with_name(name)
            if not (beside.exists() and _is_of(beside, self.guide.record)):
                save(beside, self.guide.net, self.guide.variables, record=self.guide.record, overwrite=overwrite)
        schedule = {name: getattr(self.settings, name) for name in ("num_steps", "sigma_min", "sigma_max", "rho")}
        record = dataclasses.replace(self.record, sampler=dataclasses.replace(sampler, **schedule))
        return save(path, self.net, self.variables, record=record, overwrite=overwrite)

    def _generator(self, settings: Settings, rng: str, latents: bool) -> Generator:
        """The last one is kept, with what is compiled."""
        wanted = settings, rng, latents
        if self._kept.get("wanted") != wanted:
            guide: Network | None = None if self.guide is None else (self.guide.net, self.guide.variables)
            decoder = None if latents else self._decoder()
            self._kept.pop("generator", None)
            self._kept["generator"] = Generator(
                self.net, self.variables, guide=guide, settings=settings, rng=rng, decoder=decoder
            )
            self._kept["wanted"] = wanted
        return self._kept["generator"]

    def _decoder(self) -> Decoder:
        if "decoder" not in self._kept:
            found = self.find_decoder() if self.find_decoder else make_decoder(self.record.encoder)
            self._kept["decoder"] = found
        return self._kept["decoder"]


def _seeds(seeds: Any, classes: Any, num: int | None, rng: str) -> tuple[list[int], str]:
    if isinstance(seeds, jax.Array) and jnp.issubdtype(seeds.dtype, jax.dtypes.prng_key):
        count = num if num is not None else len(classes) if isinstance(classes, Sequence | np.ndarray) else 1
        return np.asarray(jax.random.bits(seeds, (count,), jnp.uint32)).tolist(), "jax"
    if num is not None:
        raise ValueError("num is for a key; seeds are as many as there are")
    return [int(seed) for seed in np.atleast_1d(np.asarray(seeds))], rng


def _is_of(path: Path, record: Record) -> bool:
    return read_record(path).digest == record.digest
