"""EDM2 diffusion networks in JAX.

    net, variables = jax_edm2.load("edm2-img512-s.safetensors")
    denoised = net.apply(variables, x, sigma, class_labels)

Public names are imported when they are first used, so that what needs no jax does not import it.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jax_edm2.checkpoint import CheckpointError, load, read_record, save
    from jax_edm2.config import ConfigError, EDM2Config, expected_tree
    from jax_edm2.folding import fold
    from jax_edm2.network import Precond, PrecondUNet, UNet
    from jax_edm2.record import Record
    from jax_edm2.sampling import heun_states, noise_levels
    from jax_edm2.training import denoising_loss, project_to_sphere, update_average

_HOME = {
    "CheckpointError": "checkpoint",
    "ConfigError": "config",
    "EDM2Config": "config",
    "Precond": "network",
    "PrecondUNet": "network",
    "Record": "record",
    "UNet": "network",
    "denoising_loss": "training",
    "expected_tree": "config",
    "fold": "folding",
    "heun_states": "sampling",
    "load": "checkpoint",
    "noise_levels": "sampling",
    "project_to_sphere": "training",
    "read_record": "checkpoint",
    "save": "checkpoint",
    "update_average": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return [*globals(), *_HOME]
