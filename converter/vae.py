"""Where a VAE's files are: on this disk, behind a URL, or on Hugging Face."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jax_edm2.record import Encoder

from .errors import ConverterError
from .networks import refuse_not_finite
from .sources import Fetching, Location

if TYPE_CHECKING:
    from jax_edm2.vae import VAEDecoder

PUBLISHED = "stabilityai/sd-vae-ft-mse"  # what img512 networks are trained with
HUB = "https://huggingface.co/{name}/resolve/main"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # on Hugging Face

Half = TypeVar("Half")


class VAENotFoundError(ConverterError):
    """No VAE where one is needed, or one that is unsound."""


def find_vae(encoder: Encoder | None, given: str | None, fetching: Fetching) -> "tuple[VAEDecoder, Any] | None":
    """The decoder and its tensors, or None for networks that draw pixels.

    given: what `open_vae` takes; by default what the encoder names.
    Raises: ConverterError, OSError.
    """
    from jax_edm2.decoding import VAE
    from jax_edm2.vae import load_vae

    if encoder is None or encoder.kind != VAE:
        if given is not None:
            raise VAENotFoundError("the network does not say that it draws latents of a VAE: leave out --vae")
        return None
    return open_vae(given if given is not None else _published(encoder), fetching, load_vae)


def open_vae(given: str, fetching: Fetching, load: "Callable[..., tuple[Half, Any]]") -> "tuple[Half, Any]":
    """One half of a VAE and its tensors, which are finite.

    given: a folder, a safetensors file, the URL of either, or a name on Hugging Face. load: `load_vae`, or
    `load_vae_encoder`.
    Raises: ConverterError, OSError.
    """
    from jax_edm2.vae import CONFIG, WEIGHTS, VAEError, read_vae_config

    location = Location(HUB.format(name=given) if _NAME.fullmatch(given) and not Path(given).exists() else given)

    def check(path: Path):
        try:
            load(path, config)
        except VAEError as error:
            raise VAENotFoundError(str(error)) from None

    def check_config(path: Path):
        try:
            read_vae_config(path)
        except VAEError as error:
            raise VAENotFoundError(str(error)) from None

    config = None
    try:
        if not location.remote:
            path = Path(location.text)
        elif re.fullmatch(r"[^?#]*\.safetensors([?#].*)?", location.text):
            path = fetching.fetch(location.text, check)
        else:
            config = fetching.fetch(f"{location.text.rstrip('/')}/{CONFIG}", check_config)
            path = fetching.fetch(f"{location.text.rstrip('/')}/{WEIGHTS}", check)
        half, params = load(path, config)
    except VAEError as error:
        raise VAENotFoundError(str(error)) from None
    refuse_not_finite("the VAE", params)
    return half, params


def _published(encoder: Encoder) -> str:
    if encoder.vae is None or not _NAME.fullmatch(encoder.vae):
        raise VAENotFoundError("the network does not say which VAE its latents are for: give --vae, or --latents")
    return HUB.format(name=encoder.vae)
