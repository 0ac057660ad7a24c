"""Where a VAE's files are: on this disk, behind a URL, or with the name that a snapshot's encoder has for it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.record import Encoder

from .errors import ConverterError
from .sources import Fetching, Location

if TYPE_CHECKING:
    from jax_edm2.vae import VAEDecoder

HUB = "https://huggingface.co/{name}/resolve/main"


class VAENotFoundError(ConverterError):
    """No VAE where one is needed, or one that is unsound."""


def find_vae(encoder: Encoder | None, given: str | None, fetching: Fetching) -> "tuple[VAEDecoder, Any] | None":
    """The decoder and its tensors, or None for networks that draw pixels.

    given: a folder, a safetensors file, or the URL of either; by default what the encoder names.
    Raises: ConverterError, OSError.
    """
    from jax_edm2.decoding import VAE
    from jax_edm2.vae import CONFIG, WEIGHTS, VAEError, load_vae, read_vae_config

    if encoder is None or encoder.kind != VAE:
        if given is not None:
            raise VAENotFoundError("the network does not say that it draws latents of a VAE: leave out --vae")
        return None
    location = Location(given if given is not None else _published(encoder))
    try:
        if not location.remote:
            return load_vae(Path(location.text))

        def check(path: Path):
            try:
                load_vae(path, config)
            except VAEError as error:
                raise VAENotFoundError(str(error)) from None

        def check_config(path: Path):
            try:
                read_vae_config(path)
            except VAEError as error:
                raise VAENotFoundError(str(error)) from None

        config = None
        if re.fullmatch(r"[^?#]*\.safetensors([?#].*)?", location.text):
            return load_vae(fetching.fetch(location.text, check))
        config = fetching.fetch(f"{location.text.rstrip('/')}/{CONFIG}", check_config)
        return load_vae(fetching.fetch(f"{location.text.rstrip('/')}/{WEIGHTS}", check), config)
    except VAEError as error:
        raise VAENotFoundError(str(error)) from None


def _published(encoder: Encoder) -> str:
    if encoder.vae is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", encoder.vae):
        raise VAENotFoundError("the network does not say which VAE its latents are for: give --vae, or --latents")
    return HUB.format(name=encoder.vae)
