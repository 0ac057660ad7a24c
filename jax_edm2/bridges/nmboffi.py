"""The network of nmboffi/jax-edm2: a flow map F(x, t), with that project's arguments, names and call signature."""

import math
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jax_edm2.config import EDM2Config
from jax_edm2.inputs import one_hot_labels
from jax_edm2.network import MPConv, MPFourier, UNet
from jax_edm2.twofold import Twofold

Array = jax.Array


class MPPositional(nn.Module):
    """Sinusoidal features of a scalar, as jax-edm2's `use_fourier=False`: [N] -> [N, channels]."""

    channels: int
    max_period: float = 10000.0

    def __call__(self, x: Twofold) -> Array:
        half = self.channels // 2
        value = x.hi + x.lo
        freqs = jnp.exp(-math.log(self.max_period) / half * jnp.arange(half, dtype=value.dtype))
        angle = value[:, None] * freqs
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) * math.sqrt(2)


class PrecondUNet(nn.Module):
    """The flow-map network of nmboffi/jax-edm2, with its constructor arguments and call signature.

    Output sigma_data F(xs / sigma_data, ts, labels): no skip connection, and `ts` enters the embedding as it is.
    Unlike there, labels may be None, `calc_weight` gives one logvar per sample, filters longer than two taps
    upsample as PyTorch does, and `use_fourier` and `fourier_bandwidth` may be left out. The variables of a
    converted snapshot fit with unet_kwargs={"use_fourier": True, ...}.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    sigma_data: float = 0.5
    logvar_channels: int = 128
    use_bfloat16: bool = False
    unet_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "unet_kwargs", _frozen(self.unet_kwargs))  # hashable, as static arguments must be
        super().__post_init__()

    @property
    def config(self) -> EDM2Config:
        """The same network's configuration, without the choice of embedding."""
        kwargs = dict(self.unet_kwargs)
        for name in ("use_fourier", "fourier_bandwidth"):
            kwargs.pop(name, None)
        kwargs.update(kwargs.pop("block_kwargs", {}))
        return EDM2Config(
            self.img_resolution,
            self.img_channels,
            self.label_dim,
            sigma_data=self.sigma_data,
            logvar_channels=self.logvar_channels,
            **kwargs,
        )

    def setup(self):
        features: Callable[[int], nn.Module] = MPPositional
        if self.unet_kwargs.get("use_fourier", False):
            features = partial(MPFourier, bandwidth=self.unet_kwargs.get("fourier_bandwidth", 1.0))
        self.unet = UNet(self.config, features=features)
        self.logvar_fourier_t = features(self.logvar_channels)
        self.logvar_linear = MPConv(self.logvar_channels, 1)

    def __call__(
        self,
        ts: Array,
        xs: Array,
        class_labels: Array | None = None,
        train: bool = False,
        calc_weight: bool = False,
    ) -> Array | tuple[Array, Array]:
        """ts, scalar or [N]; xs [N, C, H, W]; class_labels [N, label_dim] or None.

        Returns [N, C, H, W], or that and logvar [N, 1, 1, 1] with calc_weight, in float32.
        """
        ts = jnp.asarray(ts, jnp.float32).reshape(-1)
        xs = jnp.asarray(xs, jnp.float32)
        labels = one_hot_labels(self.config, class_labels, jnp.float32, xs.shape[0])
        dtype = jnp.bfloat16 if self.use_bfloat16 else jnp.float32
        raw = self.unet((xs / self.sigma_data).astype(dtype), ts, labels, train)
        output = self.sigma_data * raw.astype(jnp.float32)
        if self.is_initializing() or calc_weight:
            logvar = self.calc_weight(ts)
        return (output, logvar) if calc_weight else output

    def calc_weight(self, ts: Array) -> Array:
        """Uncertainty logvar [N, 1, 1, 1] at ts, scalar or [N]."""
        ts = jnp.asarray(ts, jnp.float32).reshape(-1)
        return self.logvar_linear(self.logvar_fourier_t(Twofold.of(ts))).reshape(-1, 1, 1, 1)


def _frozen(value):
    if isinstance(value, Mapping):
        return FrozenDict({key: _frozen(v) for key, v in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
