"""Broken and hostile VAEs: their configurations, and the tensors beside them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpora.hostile_checkpoints import ENDING, OK, SAFETENSORS, VAE, built, checkpoint_input, sound
from tests.corpora.inputs import ACCEPT, Input
from tests.support.json_mutants import MARK, RAW

INPUTS: list[Input] = []


def add(*described: Any, **more: Any):
    INPUTS.append(checkpoint_input(*described, **more))


SMALL = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
IN_VAE = {"command": ("edm2-sample", f"--net={SAFETENSORS}", "--vae=vae", *ENDING), "file": VAE}


def small_vae(path: Path, config: bytes | None = None, edit: Callable[[dict], Any] = lambda tensors: None):
    """A folder with a VAE, beside the network that it is for."""
    import safetensors.numpy

    from jax_edm2.vae import CONFIG as NAME
    from jax_edm2.vae import WEIGHTS, VAEConfig

    shutil.copy(sound("safetensors"), path.with_name(SAFETENSORS))
    path.mkdir()
    rng = np.random.default_rng(0)
    shapes = VAEConfig(**{**SMALL, "block_out_channels": (8, 16)}).decoder_tensors
    tensors = {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    edit(tensors)
    safetensors.numpy.save_file(tensors, path / WEIGHTS)
    (path / NAME).write_bytes(json.dumps(SMALL).encode() if config is None else config)


def vae(name: str, says: str, change: dict[str, Any] | bytes, raw: bytes = b"", **more: Any):
    text = change if isinstance(change, bytes) else json.dumps({**SMALL, **change}).encode()
    text = text.replace(json.dumps(MARK).encode(), raw)
    add("vae", name, says, lambda path: small_vae(path, text), **{**IN_VAE, **more})


vae("nested deep", "nested more than", {"x": MARK}, RAW["objects nested 500 deep"])
vae("an integer of 5,000 digits", "5,000 digits", {"norm_num_groups": MARK}, b"9" * 5000)
vae("NaN", "holds NaN", {"norm_num_groups": MARK}, b"NaN")
vae("nested widths", "block_out_channels is", {"block_out_channels": [[8], [16]]})
vae("widths of objects", "block_out_channels is", {"block_out_channels": [{"a": 1}]})
vae("widths that are text", "block_out_channels is 'many'", {"block_out_channels": "many"})
vae("widths that are null", "block_out_channels is None", {"block_out_channels": None})
vae("widths of true", "block_out_channels is", {"block_out_channels": [True]})
vae("no widths", "block_out_channels is []", {"block_out_channels": []})
vae("a width of 2^40", "block_out_channels is", {"block_out_channels": [2**40]})
vae("100,000 widths", "block_out_channels is", {"block_out_channels": [8] * 20_000})
vae("layers of a list", "layers_per_block is a value of type list", {"layers_per_block": [1] * 100})
vae("4,000 layers", "layers_per_block is 4000", {"layers_per_block": 4000})
vae("layers of 1.0", "layers_per_block is 1.0", {"layers_per_block": 1.0})
vae("no groups", "norm_num_groups is 0", {"norm_num_groups": 0})
vae("3 groups", "make no VAE with 3 groups", {"norm_num_groups": 3})
vae("more channels than the file has", "decoder.conv_out.weight is [3, 8, 3, 3]", {"out_channels": 4096})
vae("another class", "describes a VQModel", {"_class_name": "VQModel"})
vae("a class that is an object", "describes a nameless with silu", {"_class_name": {"a": 1}})
vae("a class of 30,000 letters", "describes a xxx", {"_class_name": "x" * 30_000})
vae("a list", "is no config.json", b"[]")
vae("a number", "is no config.json", b"5")
vae("nothing", "is no config.json", b"")
vae("no UTF-8", "is no config.json", b"\xff\xfe")
vae("a key twice", "has a key twice", b'{"a": 1, "a": 2}')
vae("10 MB", "65,536 are read at most", b"[" + b"1," * 5 * 10**6 + b"1]")
vae("as it should be", ACCEPT, {}, **{**OK, "file": VAE})
add(
    "vae",
    "NaN in a weight",
    "the VAE: has values that are NaN or infinite",
    lambda path: small_vae(path, edit=_nan),
    **IN_VAE,
)
add("vae", "integers", "is I32, should be one of", lambda path: small_vae(path, edit=_integers), **IN_VAE)
add("vae", "a tensor too many", "is not part of it", lambda path: small_vae(path, edit=_more), **IN_VAE)
add("vae", "a header nested deep", "nested more than", lambda path: _hostile_header(path), **IN_VAE)


def _nan(tensors):
    tensors["decoder.conv_in.bias"][0] = np.nan


def _integers(tensors):
    tensors["decoder.conv_in.bias"] = tensors["decoder.conv_in.bias"].astype(np.int32)


def _more(tensors):
    tensors["decoder." + "x" * 10_000] = np.zeros(1, np.float32)


def _hostile_header(path: Path):
    from jax_edm2.vae import WEIGHTS

    small_vae(path)
    (path / WEIGHTS).write_bytes(built({"x": MARK}, b"", RAW["lists nested 100,000 deep"]))
