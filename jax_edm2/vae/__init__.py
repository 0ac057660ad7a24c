"""Stability's VAE, between pictures and the latents of img512 networks: encoder, decoder, and their files.

They are those of diffusers' AutoencoderKL, of any size: tensors have its names and PyTorch's layouts, and everything is
computed in the tensors' dtype, with norms in float32. Published weights: huggingface.co/stabilityai/sd-vae-ft-mse.
"""

from jax_edm2.vae.config import VAEConfig, VAEError, read_vae_config
from jax_edm2.vae.loading import CONFIG, WEIGHTS, load_vae, load_vae_encoder
from jax_edm2.vae.network import VAEDecoder, VAEEncoder

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "VAEConfig",
    "VAEDecoder",
    "VAEEncoder",
    "VAEError",
    "load_vae",
    "load_vae_encoder",
    "read_vae_config",
]
