"""From a name to a model that is ready: a preset's, a checkpoint's or a snapshot's, here or behind a URL."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jax_edm2.model import Guide, Model

from . import presets
from .downloads.cache import sha256 as file_sha256
from .drawing_request import DrawRequest, resolve
from .errors import UsageError
from .networks import LoadedNetwork, load_network
from .opening import is_checkpoint
from .sources import Fetching, Location
from .vae import find_vae

if TYPE_CHECKING:
    from jax_edm2.model import Decoder


def from_pretrained(
    name: str | os.PathLike,
    *,
    guide: str | os.PathLike | None = None,
    guidance: float | None = None,
    vae: str | os.PathLike | None = None,
    dtype: Any = None,
    compute_dtype: Any = None,
    sharding: Any = None,
    sha256: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> Model:
    """The model of a published name (edm2-img512-s), of a checkpoint's or snapshot's path, or of a snapshot's URL.

    Both may be in stores, too: s3://bucket/name, gs://bucket/name, hf://owner/repo@revision/name. What they have there
    is fetched once; but where there is a `sharding`, a checkpoint is read in its place, as `jax_edm2.load` does.
    Snapshots are downloaded once, and nothing in them is executed. guide: another network, likewise; by default the
    preset's or the one that the checkpoint's record names beside it. guidance: its weight, likewise; 1 is none. vae: a
    folder, file or URL; by default what the network names, when pictures are first asked for. dtype, compute_dtype,
    sharding: as for `jax_edm2.load`, for both networks. sha256: what a snapshot's file must have. cache_dir, offline:
    where downloads are kept, and whether there are to be none.
    Raises: ConverterError or CheckpointError for what is missing, broken or refused; OSError; ValueError as `load`.
    """
    name, given, given_vae = os.fspath(name), *(None if path is None else os.fspath(path) for path in (guide, vae))
    here = Location(name).remote or Path(name).exists()
    if not here:
        try:
            presets.find(name)
        except presets.PresetError as error:
            raise UsageError(f"{name}: there is no such file or folder, and {error}") from None
    if given is not None and guidance is None:
        raise UsageError("a guide takes guidance=, a number such as 1.5")
    fetching = Fetching(sha256, cache_dir, offline)
    net, preset = (name, None) if here else (None, name)
    resolved = resolve(DrawRequest(preset=preset, net=net, gnet=given, guidance=guidance, fetching=fetching))

    def load(location: Location) -> LoadedNetwork:
        compute = jnp.dtype(jnp.float32 if compute_dtype is None else compute_dtype)
        in_place = location.stored_checkpoint and sharding is not None and sha256 is None and not offline
        path = location.text if in_place else fetching.bring(location)
        found = load_network(path, location.name, lambda _: compute, dtype, sharding)
        source = found.record.source
        if source is None or in_place or is_checkpoint(Path(path)):
            return found
        source = dataclasses.replace(source, sha256=file_sha256(path))
        return dataclasses.replace(found, record=dataclasses.replace(found.record, source=source))

    main = load(resolved.net)
    other = None if resolved.guide is None else load(resolved.guide)

    def find_decoder() -> "Decoder":
        from jax_edm2.decoding import make_decoder

        return make_decoder(main.record.encoder, find_vae(main.record.encoder, given_vae, fetching))

    return Model(
        main.net, main.variables, main.record, resolved.settings,
        Guide(other.net, other.variables, other.record) if other else None, find_decoder,
    )  # fmt: skip
