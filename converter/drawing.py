"""A network, its guide and its decoder, loaded and ready to draw."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jax_edm2 import __version__, strict_json
from jax_edm2.dtypes import not_finite

from . import embedded
from .drawing_request import DrawRequest, Resolved
from .errors import SampleError
from .networks import LoadedNetwork, load_network, refuse_not_finite
from .progress import Warn
from .sources import Location
from .vae import find_vae

if TYPE_CHECKING:
    import numpy as np

    from jax_edm2.generation import Batch, Generator
    from jax_edm2.network import Precond


@dataclass(frozen=True)
class Prepared:
    """The network's name, its generator, what is said of where pictures come from, and their shape [C, H, W]."""

    name: str
    net: "Precond"
    generator: "Generator"
    about: dict[str, Any]
    shape: tuple[int, ...]

    def latents(self, batch: "Batch") -> "np.ndarray":
        """What the network gave [N, C, H, W], filled up to the batch's size. Raises: SampleError if not finite."""
        import numpy as np

        found = np.asarray(batch.latents)
        if lost := [seed for seed, latent in zip(batch.seeds, found, strict=False) if not_finite(latent)]:
            precise = "; try --precision=float32" if self.about["precision"] != "float32" else ""
            raise SampleError(f"the network gives values that are NaN or infinite for seed {lost[0]}{precise}")
        return found


def prepare(request: DrawRequest, resolved: Resolved, warn: Warn, *, latents: bool = False) -> Prepared:
    """latents: what the network gives is wanted, and no pictures of it.

    Call it with JAX's matrix products set to "highest": embeddings and the VAE are float32, and always meant as that.
    Raises: SampleError, ConverterError, CheckpointError, OSError.
    """
    import jax

    from jax_edm2.decoding import make_decoder
    from jax_edm2.generation import Generator

    from .pictures import MODES

    if request.preset is not None and request.net is not None:
        stay = "whose guide is kept" if resolved.guide is not None else "of which nothing is used"
        warn(f"--net {resolved.net.name} is taken, and not the network of --preset {request.preset}, {stay}")
    main = _load(request, resolved.net, warn)  # its digest is checked: it goes into every picture
    guide = None if resolved.guide is None else _load(request, resolved.guide, warn)
    channels, size = main.net.config.img_channels, main.net.config.img_resolution
    shape = channels, size, size
    try:
        decoder = None
        if not latents:
            vae = find_vae(main.record.encoder, request.vae, request.fetching)
            if vae is None and channels not in MODES:
                raise SampleError(
                    f"{main.name}: draws {channels} channels and names no VAE: no pictures; use --latents"
                )
            if vae is not None:
                shape = vae[0].config.out_channels, size * vae[0].scale, size * vae[0].scale
            decoder = make_decoder(main.record.encoder, vae, request.vae_batch)
        generator = Generator(
            main.net, main.variables, guide=(guide.net, guide.variables) if guide else None,
            settings=resolved.settings, rng=request.rng, class_idx=request.class_idx, decoder=decoder,
        )  # fmt: skip
    except ValueError as error:
        raise SampleError(f"{main.name}: {error}" if not guide else f"{main.name}, {guide.name}: {error}") from None
    about = {
        "network": _about(main),
        "guide": _about(guide) if guide else None,
        "settings": strict_json.clean(dataclasses.asdict(resolved.settings)),
        "class_idx": request.class_idx,
        "rng": request.rng,
        "precision": jax.numpy.dtype(main.net.dtype).name,
        "nvlabs_rounding": request.nvlabs_rounding,
        "edm2_jax": __version__,
    }
    return Prepared(main.name, main.net, generator, about, shape)


def exchanged(prepared: Prepared, request: DrawRequest, location: Location, warn: Warn) -> Prepared:
    """The same with another network's weights, for which nothing is compiled again. Raises: as `prepare`."""
    other = _load(request, location, warn)
    if other.net != prepared.net:
        raise SampleError(f"{other.name}: is configured otherwise than {prepared.name}")
    generator = prepared.generator.with_variables(other.variables)
    about = {**prepared.about, "network": _about(other)}
    return dataclasses.replace(prepared, name=other.name, generator=generator, about=about)


def _about(network: LoadedNetwork) -> dict[str, Any]:
    code = network.record.code
    return {
        "name": network.name,
        "digest": network.record.digest,
        "code": None if code is None else dataclasses.asdict(code),
    }


def _load(request: DrawRequest, location: Location, warn: Warn) -> LoadedNetwork:
    import jax

    from jax_edm2.folding import nvlabs_gains

    def dtype(record):
        if request.precision != "auto":
            return request.precision
        return "float16" if jax.default_backend() == "gpu" and record.config.use_fp16 else "float32"

    loaded = load_network(request.fetching.bring(location), location.name, dtype)
    if line := embedded.warning(loaded.name, loaded.record.code):
        warn(line)
    refuse_not_finite(loaded.name, loaded.variables)
    if request.nvlabs_rounding:
        if "float16" not in loaded.record.dtype.split("+"):
            raise SampleError(
                f"{loaded.name}: is stored in {loaded.record.dtype}, and --nvlabs-rounding is for float16: convert it "
                "with --dtype keep"
            )
        loaded = dataclasses.replace(loaded, variables=nvlabs_gains(loaded.variables))
    return loaded
