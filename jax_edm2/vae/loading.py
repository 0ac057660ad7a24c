"""A VAE's encoder or decoder from diffusers' files. Every name and shape is checked, and nothing is executed."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from jax_edm2.messages import listing, printable
from jax_edm2.safetensors_format import CODES, File, FormatError
from jax_edm2.vae.config import ATTENTION, VAEConfig, VAEError, read_vae_config
from jax_edm2.vae.network import VAEDecoder, VAEEncoder

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"  # what diffusers calls the files of a VAE

# How the names of its tensors begin, of either half.
_PARTS = {"decoder": ("decoder.", "post_quant_conv."), "encoder": ("encoder.", "quant_conv.")}

# What the projections of the attention were called before diffusers 0.18, as in published files.
_OLD_NAMES = dict(zip(ATTENTION, ("query", "key", "value", "proj_attn"), strict=True))

Params = dict[str, jax.Array]


def load_vae(path: Path, config: Path | None = None, *, dtype=jnp.float32) -> tuple[VAEDecoder, Params]:
    """A VAE's decoder and its tensors, from diffusers' folder or its safetensors file.

    config: its config.json; by default that beside the file, or the published VAE's if there is none. dtype: of the
    tensors, and of what is computed with them.
    Raises: VAEError if it is missing, broken, or no AutoencoderKL with plain blocks.
    """
    file, found = _locate(Path(path), config)
    return VAEDecoder(found), _read(file, "decoder", found.decoder_tensors, dtype)


def load_vae_encoder(path: Path, config: Path | None = None, *, dtype=jnp.float32) -> tuple[VAEEncoder, Params]:
    """Likewise its encoder."""
    file, found = _locate(Path(path), config)
    return VAEEncoder(found), _read(file, "encoder", found.encoder_tensors, dtype)


def _locate(path: Path, config: Path | None) -> tuple[Path, VAEConfig]:
    """The file with the tensors, and what they are of."""
    folder = path if path.is_dir() else path.parent
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise VAEError(
            f"{path}: there is no such file; a VAE is a safetensors file, or diffusers' folder with {WEIGHTS}"
        )
    config = config or (folder / CONFIG if (folder / CONFIG).is_file() else None)
    return path, read_vae_config(config) if config else VAEConfig()


def _read(path: Path, part: str, tensors: Mapping[str, tuple[int, ...]], dtype) -> Params:
    try:
        with File(path) as file:
            stored = {name: name if name in file.entries else _old_name(name) for name in tensors}
            problems = _problems(file, stored, tensors, _PARTS[part])
            if problems:
                raise VAEError(f"{path}: does not hold the {part} of an AutoencoderKL: " + listing(problems))
            return {name: jnp.asarray(file.array(stored[name]), dtype) for name in stored}
    except FormatError as error:
        raise VAEError(f"{path}: {error}; pickled VAEs are not read") from error
    except OSError as error:
        raise VAEError(f"{path}: cannot be read ({error.strerror or error})") from error


def _problems(
    file: File, stored: Mapping[str, str], tensors: Mapping[str, tuple[int, ...]], part: tuple[str, ...]
) -> list[str]:
    """Where a file's tensors differ from those wanted, which have other names there: `stored`. part: one of _PARTS."""
    problems = []
    for name, shape in tensors.items():
        entry = file.entries.get(stored[name])
        if entry is None:
            problems.append(f"- {name} {list(shape)} is missing")
        elif entry.shape != shape:
            problems.append(f"! {name} is {list(entry.shape)}, should be {list(shape)}")
        elif entry.dtype not in CODES:
            problems.append(f"! {name} is {entry.dtype}, should be one of {', '.join(CODES)}")
    unknown = sorted(name for name in file.entries.keys() - {*stored.values()} if name.startswith(part))
    return problems + [f"+ {printable(name[:200])} is not part of it" for name in unknown]


def _old_name(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name
