"""How images become network inputs and back: the encoder record of a snapshot.

`torch_ref.snapshot` embeds this file's source for both classes, so it imports torch and numpy alone, and diffusers
only when a latent is decoded.
"""

from typing import Any

import numpy as np
import torch


class StandardRGBEncoder:
    """Pixels [N, C, H, W]: uint8 <-> [-1, 1]."""

    def init(self, device):
        pass

    def encode_pixels(self, x):
        return x

    def encode_latents(self, x):
        return x.to(torch.float32) / 127.5 - 1

    def encode(self, x):
        return self.encode_latents(self.encode_pixels(x))

    def decode(self, x):
        return (x.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)


class StabilityVAEEncoder:
    """Latents [N, 4, H, W] of Stability's VAE, whitened per channel: final = raw * scale + bias."""

    def __init__(
        self,
        vae_name="stabilityai/sd-vae-ft-mse",
        raw_mean=(5.81, 3.25, 0.12, -2.15),
        raw_std=(4.17, 4.62, 3.71, 3.28),
        final_mean=0,
        final_std=0.5,
        batch_size=8,
    ):
        self.vae_name = vae_name
        self.scale = np.float32(final_std) / np.float32(raw_std)
        self.bias = np.float32(final_mean) - np.float32(raw_mean) * self.scale
        self.batch_size = batch_size
        self._vae: Any = None

    def __getstate__(self):
        return {**self.__dict__, "_vae": None}  # the VAE itself is not part of a snapshot

    def init(self, device):
        if self._vae is None:
            from diffusers import AutoencoderKL

            self._vae = AutoencoderKL.from_pretrained(self.vae_name).eval().requires_grad_(False)
        self._vae.to(device)

    def encode_latents(self, x):
        """Raw latent statistics [N, 8, H, W], means then standard deviations, to a sampled latent [N, 4, H, W]."""
        mean, std = x.to(torch.float32).chunk(2, dim=1)
        scale, bias = self._affine(x)
        return (mean + torch.randn_like(mean) * std) * scale + bias

    def decode(self, x):
        """Latents [N, 4, H, W] to uint8 pixels [N, 3, 8H, 8W]."""
        self.init(x.device)
        scale, bias = self._affine(x)
        raw = (x.to(torch.float32) - bias) / scale
        pixels = torch.cat([self._vae.decode(part)["sample"] for part in raw.split(self.batch_size)])
        return (pixels.clamp(0, 1) * 255).to(torch.uint8)

    def _affine(self, x):
        return (torch.as_tensor(v, device=x.device).reshape(1, -1, 1, 1) for v in (self.scale, self.bias))
