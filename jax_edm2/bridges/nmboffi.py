"""The networks of nmboffi/jax-edm2, with that project's arguments, names and call signatures over our modules.

import jax_edm2 as edm2_net
net, variables = edm2_net.load("edm2-img512-s.safetensors")
model = edm2_net.PrecondUNet(**edm2_net.nmboffi.arguments(net))  # that project's class takes them too
F, logvar = model.apply(variables, ts, xs, labels, calc_weight=True)
edm2_net.save("tuned.safetensors", *edm2_net.nmboffi.to_precond(model, variables))
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, unfreeze

from jax_edm2.config import EDM2Config
from jax_edm2.inputs import one_hot_labels
from jax_edm2.network import MPConv, MPFourier, Precond, UNet
from jax_edm2.training.loss import project_to_sphere
from jax_edm2.twofold import Twofold

Array = jax.Array


@partial(jax.pmap, axis_name="data")
def pmap_project_to_sphere(variables: Any) -> Any:
    """`project_to_sphere` of variables that are replicated: every leaf has a leading axis, one entry a device.

    Raises: ValueError if that axis is longer than there are devices, or not equally long in all leaves.
    """
    return project_to_sphere(variables)


class MPPositional(nn.Module):
    """Sinusoidal features of a scalar, as jax-edm2's `use_fourier=False`: [N] -> [N, channels]."""

    channels: int
    max_period: float = 10000.0

    def __call__(self, x: Twofold) -> Array:
        value = x.hi + x.lo
        angle = value[:, None] * self.frequencies(value.dtype)
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) * math.sqrt(2)

    def frequencies(self, dtype: Any = jnp.float32) -> Array:
        """[channels // 2]"""
        half = self.channels // 2
        return jnp.exp(-math.log(self.max_period) / half * jnp.arange(half, dtype=dtype))


class EDM2UNet(nn.Module):
    """The U-Net F(x, ts, labels) of nmboffi/jax-edm2, with its constructor arguments, call signature and variables.

    Unlike there, labels may be None, and filters longer than two taps upsample as PyTorch does.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    use_fourier: bool = False
    fourier_bandwidth: float = 1.0
    block_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("channel_mult", "attn_resolutions", "block_kwargs"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))  # hashable, as static arguments must be
        super().__post_init__()

    @property
    def config(self) -> EDM2Config:
        """The same network's configuration, without the choice of embedding."""
        return EDM2Config(**{name: getattr(self, name) for name in _UNET_FIELDS}, **self.block_kwargs)

    def setup(self):
        self.net = UNet(self.config, features=_features(self.use_fourier, self.fourier_bandwidth))
        nn.share_scope(self, self.net)

    def __call__(self, x: Array, ts: Array, class_labels: Array | None, train: bool = False) -> Array:
        """x [N, C, H, W] in any float dtype; ts, one for all or N, of any shape; class_labels [N, label_dim] or None.

        Returns [N, C, H, W] in x's dtype. Dropout is active with train=True and needs rngs={"dropout": key}.
        It differs from jax-edm2's for the same key: that project draws its masks as [N, C, H, W], this one as
        [N, H, W, C], and Flax folds the name of the dropout layer, which is another there, into the key.
        """
        labels = one_hot_labels(self.config, class_labels, jnp.float32, x.shape[0])
        return self.net(x, jnp.asarray(ts, jnp.float32).reshape(-1), labels, train)


class PrecondUNet(nn.Module):
    """The flow-map network of nmboffi/jax-edm2, with its constructor arguments, call signature and variables.

    Output sigma_data F(xs / sigma_data, ts, labels): no skip connection, and `ts` enters the embedding as it is.
    Unlike there, labels may be None, `calc_weight` gives one logvar per sample and not the first one's, filters longer
    than two taps upsample as PyTorch does, and `use_fourier` and `fourier_bandwidth` may be left out. `arguments` gives
    those of a converted network. Dropout masks are other ones for the same key: see `EDM2UNet`.
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
        unet = EDM2UNet(self.img_resolution, self.img_channels, self.label_dim, **self.unet_kwargs, parent=None)
        return dataclasses.replace(unet.config, sigma_data=self.sigma_data, logvar_channels=self.logvar_channels)

    def setup(self):
        self.unet = EDM2UNet(self.img_resolution, self.img_channels, self.label_dim, **self.unet_kwargs)
        self.logvar_fourier_t = _features(self.unet.use_fourier, self.unet.fourier_bandwidth)(self.logvar_channels)
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
        dtype = jnp.bfloat16 if self.use_bfloat16 else jnp.float32
        raw = self.unet((xs / self.sigma_data).astype(dtype), ts, class_labels, train)
        output = self.sigma_data * raw.astype(jnp.float32)
        if self.is_initializing() or calc_weight:
            logvar = self.calc_weight(ts)
        return (output, logvar) if calc_weight else output

    def calc_weight(self, ts: Array) -> Array:
        """Uncertainty logvar [N, 1, 1, 1] at ts, scalar or [N]."""
        ts = jnp.asarray(ts, jnp.float32).reshape(-1)
        return self.logvar_linear(self.logvar_fourier_t(Twofold.of(ts))).reshape(-1, 1, 1, 1)


def arguments(net: Precond) -> dict[str, Any]:
    """Constructor arguments of the PrecondUNet, ours or jax-edm2's own, that the variables of `net` fit as they are.

    The same U-Net is under another head there: D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), of which
    PrecondUNet gives sigma_data F at ts = ln(sigma) / 4, xs = sigma_data c_in x.
    Raises: ValueError for a folded network, and for one that computes in another precision than float32 or bfloat16.
    """
    dtype = jnp.dtype(net.dtype)
    if net.folded or dtype not in (jnp.float32, jnp.bfloat16):
        kind = "a folded network" if net.folded else f"one that computes in {dtype}"
        raise ValueError(f"jax-edm2 has unfolded networks in float32 and bfloat16, not {kind}")
    fields = dataclasses.asdict(net.config)
    del fields["use_fp16"]
    own = {name: fields.pop(name) for name in _PRECOND_FIELDS}
    unet = {name: fields.pop(name) for name in _UNET_FIELDS if name in fields}
    unet |= {"use_fourier": True, "fourier_bandwidth": 1.0, "block_kwargs": fields}
    return own | {"use_bfloat16": dtype == jnp.bfloat16, "unet_kwargs": unet}


def to_precond(model: PrecondUNet, variables: Mapping[str, Any]) -> tuple[Precond, dict[str, Any]]:
    """The way back: (net, variables) that `jax_edm2.save` takes, of the variables of a PrecondUNet, ours or jax-edm2's.

    That project writes no files. A pickle of its variables, and flax.serialization.msgpack_restore of their bytes, are
    these variables; of those for pmap, take jax.tree.map(lambda leaf: leaf[0], variables).
    Where use_fourier is False, the features cos(w t) and sin(w t) become `constants`, freqs w with phases 0 and -pi/2:
    saved, they fit a PrecondUNet with use_fourier=True, which computes the same.
    The checkpoint holds the U-Net, not what it was trained for: D of `net` denoises only if F was trained as its F.
    """
    tree = unfreeze(dict(variables))
    if not model.unet_kwargs.get("use_fourier", False):
        config = model.config
        unet = {"emb_t_fourier": _constants(config.noise_channels)}
        tree["constants"] = {"unet": unet, "logvar_fourier_t": _constants(config.logvar_channels)}
    return Precond(model.config, jnp.bfloat16 if model.use_bfloat16 else jnp.float32), tree


def _constants(channels: int) -> dict[str, Array]:
    freqs = MPPositional(channels).frequencies()
    phases = jnp.zeros_like(freqs)
    return {"freqs": jnp.concatenate([freqs] * 2), "phases": jnp.concatenate([phases, phases - math.pi / 2])}


def _features(use_fourier: bool, bandwidth: float) -> Callable[[int], nn.Module]:
    return partial(MPFourier, bandwidth=bandwidth) if use_fourier else MPPositional


def _frozen(value):
    if isinstance(value, Mapping):
        return FrozenDict({key: _frozen(v) for key, v in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


_CONFIG_FIELDS = [item.name for item in dataclasses.fields(EDM2Config)]
_UNET_FIELDS = [name for name in _CONFIG_FIELDS if name in EDM2UNet.__dataclass_fields__]
_PRECOND_FIELDS = [name for name in _CONFIG_FIELDS if name in PrecondUNet.__dataclass_fields__]
