"""EDM2 diffusion networks in JAX.

    net, variables = jax_edm2.load("edm2-img512-s.safetensors")
    denoised = net.apply(variables, x, sigma, class_labels)

Public names are imported when they are first used, so that what needs no jax does not import it.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# converter, torch_ref and golden are installed in this package, under names that no other project takes. In a clone
# they lie beside it.
if not (Path(__file__).parent / "converter").exists():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from jax_edm2.bridges import diffrax, flaxdiff, flow, nmboffi, nnx
    from jax_edm2.bridges.nmboffi import EDM2UNet, PrecondUNet, pmap_project_to_sphere
    from jax_edm2.checkpoint import load, read_record, save
    from jax_edm2.config import ConfigError, EDM2Config, expected_tree
    from jax_edm2.converter.errors import ConverterError
    from jax_edm2.converter.pretrained import from_pretrained
    from jax_edm2.decoding import make_decoder
    from jax_edm2.ema import (
        posthoc_average,
        posthoc_coefficients,
        power_function_beta,
        power_function_exponent,
        update_average,
    )
    from jax_edm2.folding import fold, nvlabs_gains
    from jax_edm2.generation import Generator
    from jax_edm2.model import Model, Samples
    from jax_edm2.network import Precond, UNet
    from jax_edm2.record import Record
    from jax_edm2.samplers import ancestral, dpmpp_2m, dpmpp_2m_sde, rk4
    from jax_edm2.sampling import denoiser, euler, guided, heun, heun_states, sample
    from jax_edm2.settings import Churn, Settings, noise_levels
    from jax_edm2.tensors import CheckpointError
    from jax_edm2.torch_random import TorchCPU, TorchCUDA
    from jax_edm2.training.loss import denoising_loss, project_to_sphere
    from jax_edm2.training_state import TrainingState, load_training_state, save_training_state
    from jax_edm2.vae import VAEDecoder, VAEEncoder, VAEError, load_vae, load_vae_encoder

_HOME = {
    "CheckpointError": "tensors",
    "Churn": "settings",
    "ConfigError": "config",
    "ConverterError": "converter.errors",
    "EDM2Config": "config",
    "EDM2UNet": "bridges.nmboffi",
    "Generator": "generation",
    "Model": "model",
    "Precond": "network",
    "PrecondUNet": "bridges.nmboffi",
    "Record": "record",
    "Samples": "model",
    "Settings": "settings",
    "TorchCPU": "torch_random",
    "TorchCUDA": "torch_random",
    "TrainingState": "training_state",
    "UNet": "network",
    "VAEDecoder": "vae",
    "VAEEncoder": "vae",
    "VAEError": "vae",
    "ancestral": "samplers",
    "denoiser": "sampling",
    "denoising_loss": "training.loss",
    "dpmpp_2m": "samplers",
    "dpmpp_2m_sde": "samplers",
    "euler": "sampling",
    "expected_tree": "config",
    "fold": "folding",
    "from_pretrained": "converter.pretrained",
    "guided": "sampling",
    "heun": "sampling",
    "heun_states": "sampling",
    "load": "checkpoint",
    "load_training_state": "training_state",
    "load_vae": "vae",
    "load_vae_encoder": "vae",
    "make_decoder": "decoding",
    "noise_levels": "settings",
    "nvlabs_gains": "folding",
    "pmap_project_to_sphere": "bridges.nmboffi",
    "posthoc_average": "ema",
    "posthoc_coefficients": "ema",
    "power_function_beta": "ema",
    "power_function_exponent": "ema",
    "project_to_sphere": "training.loss",
    "read_record": "checkpoint",
    "rk4": "samplers",
    "sample": "sampling",
    "save": "checkpoint",
    "save_training_state": "training_state",
    "update_average": "ema",
}
_BRIDGES = "diffrax", "flaxdiff", "flow", "nmboffi", "nnx"  # modules, as jax_edm2.nnx.load
__all__ = sorted([*_HOME, *_BRIDGES])


def __getattr__(name):
    if name in _BRIDGES:
        return importlib.import_module(f"{__name__}.bridges.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return [*globals(), *_HOME, *_BRIDGES]
