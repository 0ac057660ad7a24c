"""The EDM2 denoiser in Flax linen: NCHW in, NCHW out, weights as PyTorch stores them, channels last in between.

Equation and figure numbers refer to Karras et al., "Analyzing and Improving the Training Dynamics of
Diffusion Models" (arXiv 2312.02696). Variable names are those of nmboffi/jax-edm2.

`dtype` is what the U-Net's activations are computed in: float32, float16 or bfloat16 (float64 with jax_enable_x64).
Embeddings, norms, weights and preconditioning are float32 (float64 for float64), whatever the variables' dtype.
"""

import math
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import lax

from jax_edm2 import twofold, winograd
from jax_edm2.config import BlockSpec, EDM2Config
from jax_edm2.ops import convolve, mp_cat, mp_silu, mp_sum, normalize, resample, wide
from jax_edm2.twofold import Twofold

Array = jax.Array
Folded = Literal["", "direct", "winograd"]  # weights as stored, or what `folding.fold` makes of them


class Tapped(nn.Module):
    """A module that names its intermediate values, so that they can be recorded or replaced from outside."""

    def tap(self, name: str, value: Any) -> Any:
        """`value` itself. flax.linen.intercept_methods sees this call: see `converter.verify.taps` for all names."""
        return value


class MPConv(nn.Module):
    """Convolution [out, in, kh, kw], or linear layer [out, in] for kernel=(), with normalised weights (Eq. 47).

    Training must keep the stored weights normalised itself (Eq. 66): see `project_to_sphere`.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    folded: Folded = ""

    def setup(self):
        shape = (self.out_channels, self.in_channels, *self.kernel)
        self.by_winograd = self.folded == "winograd" and winograd.serves(shape)
        if self.by_winograd:
            shape = (winograd.PRODUCTS, self.in_channels, self.out_channels)
        elif self.folded and self.kernel:
            shape = (*self.kernel, self.in_channels, self.out_channels)
        self.weight = self.param("mpconv_weight", nn.initializers.normal(1.0), shape)

    def __call__(self, x: Array, gain: Array | None = None) -> Array:
        w = self.weight
        if not self.folded:
            w = w.astype(wide(x.dtype))
            scale = 1 / math.sqrt(w[0].size)
            w = normalize(w) * (scale if gain is None else gain.astype(w.dtype) * scale)
        w = w.astype(x.dtype)
        if not self.kernel:
            return x @ w.T
        if self.by_winograd:
            return winograd.convolve(x, w)
        return convolve(x, w, self.kernel[0] // 2, "HWIO" if self.folded else "OIHW")


class MPFourier(nn.Module):
    """Random Fourier features of a scalar (Eq. 75): [N] -> [N, channels], unit root mean square.

    The frequencies and phases are not trained: they live in the collection `constants`.
    """

    channels: int
    bandwidth: float = 1.0

    def setup(self):
        def draw(sample, scale):
            return lambda: 2 * math.pi * scale * sample(self.make_rng("constants"), (self.channels,), jnp.float32)

        self.freqs = self.variable("constants", "freqs", draw(jax.random.normal, self.bandwidth))
        self.phases = self.variable("constants", "phases", draw(jax.random.uniform, 1.0))

    def __call__(self, x: Twofold) -> Array:
        column = Twofold(x.hi[:, None], x.lo[:, None])
        freqs, phases = (Twofold.of(v.value.astype(x.hi.dtype)) for v in (self.freqs, self.phases))
        return twofold.cos(column * freqs + phases) * math.sqrt(2)


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


class Block(Tapped):
    """Encoder or decoder block with optional self-attention (Fig. 21): x [N, H, W, Cin], emb [N or 1, Cemb]."""

    spec: BlockSpec
    config: EDM2Config
    folded: Folded = ""

    def setup(self):
        cin, cout = self.spec.in_channels, self.spec.out_channels
        conv = partial(MPConv, folded=self.folded)
        self.emb_gain = self.param("emb_gain", nn.initializers.zeros, ())
        self.conv_res0 = conv(cout if self.spec.flavor == "enc" else cin, cout, (3, 3))
        self.emb_linear = conv(self.config.emb_channels, cout)
        self.conv_res1 = conv(cout, cout, (3, 3))
        self.conv_skip = conv(cin, cout, (1, 1)) if cin != cout else None
        if self.spec.num_heads:
            self.attn_qkv = conv(cout, 3 * cout, (1, 1))
            self.attn_proj = conv(cout, cout, (1, 1))
        self.drop = nn.Dropout(self.config.dropout)

    def __call__(self, x: Array, emb: Array, train: bool = False) -> Array:
        if self.spec.resample != "keep":
            x = self.tap("resample", resample(x, self.config.resample_filter, self.spec.resample))
        if self.spec.flavor == "enc":
            x = self.skip(x)
            x = self.tap("pixel_norm", normalize(x, axis=-1))
        y = self.residual(x, emb, train)
        if self.spec.flavor == "dec":
            x = self.skip(x)
        x = self.tap("res_sum", mp_sum(x, y, self.config.res_balance))
        if self.spec.num_heads:
            x = self.tap("attn_sum", mp_sum(x, self.attend(x), self.config.attn_balance))
        if self.config.clip_act is not None:
            x = jnp.clip(x, -self.config.clip_act, self.config.clip_act)
        return x

    def skip(self, x: Array) -> Array:
        return x if self.conv_skip is None else self.conv_skip(x)

    def residual(self, x: Array, emb: Array, train: bool) -> Array:
        y = self.conv_res0(self.tap("silu0", mp_silu(x)))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1  # [N or 1, Cout]
        y = self.tap("modulation", y * c[:, None, None, :].astype(y.dtype))
        y = self.tap("silu1", mp_silu(y))
        if self.config.dropout:
            y = self.tap("dropout", self.drop(y, deterministic=not train))
        return self.conv_res1(y)

    def attend(self, x: Array) -> Array:
        """Cosine attention: q, k and v, interleaved innermost in the channels, are all pixel-normalised."""
        n, h, w, c = x.shape
        heads = self.spec.num_heads
        # Split and merged in separate steps, as meshes with explicit axes demand.
        y = self.attn_qkv(x).reshape(n, h, w, heads, c // heads, 3).reshape(n, h * w, heads, c // heads, 3)
        y = self.tap("qkv_norm", normalize(y, axis=3))
        q, k, v = (y[..., i] for i in range(3))  # each [N, H W, heads, C / heads]
        full = wide(x.dtype)
        logits = jnp.einsum("nqhc,nkhc->nhqk", q, (k.astype(full) / math.sqrt(c // heads)).astype(k.dtype))
        weights = nn.softmax(logits.astype(full), axis=3).astype(v.dtype)
        y = jnp.einsum("nhqk,nkhc->nqhc", weights, v)
        return self.attn_proj(self.tap("attention", y.reshape(n, h, w, heads, c // heads).reshape(x.shape)))


class UNet(Tapped):
    """The EDM2 U-Net (Fig. 21).

    x [N, C, H, W] in any dtype, which is that of the result; noise_labels [N or 1] and class_labels
    [N or 1, label_dim] (ignored if label_dim is 0) in float32; noise_labels may be Twofold.
    """

    config: EDM2Config
    use_fourier: bool = True  # False: MPPositional in place of MPFourier
    fourier_bandwidth: float = 1.0
    folded: Folded = ""

    def setup(self):
        config, conv = self.config, partial(MPConv, folded=self.folded)
        noise, emb, widths = config.noise_channels, config.emb_channels, config.widths
        self.out_gain = self.param("out_gain", nn.initializers.zeros, ())
        self.emb_t_fourier = MPFourier(noise, self.fourier_bandwidth) if self.use_fourier else MPPositional(noise)
        self.emb_t_linear = conv(noise, emb)
        self.emb_label = conv(config.label_dim, emb) if config.label_dim else None
        architecture = config.architecture
        # Flax names the members of a dict after attribute and key: enc_64x64_conv, dec_8x8_in0, ...
        conv_in: dict[str, Any] = {architecture.conv_in: conv(config.img_channels + 1, widths[0], (3, 3))}
        block = partial(Block, config=config, folded=self.folded)
        self.enc: dict[str, Any] = conv_in | {spec.name: block(spec) for spec in architecture.encoder}
        self.dec = {spec.name: block(spec) for spec in architecture.decoder}
        self.out_conv = conv(widths[0], config.img_channels, (3, 3))

    def __call__(
        self, x: Array, noise_labels: Array | Twofold, class_labels: Array | None, train: bool = False
    ) -> Array:
        emb = self.embed(noise_labels, class_labels)
        architecture = self.config.architecture
        x = x.transpose(0, 2, 3, 1)
        x = self.tap("ones", jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1))
        x = self.enc[architecture.conv_in](x)
        skips = [x]
        for spec in architecture.encoder:
            x = self.enc[spec.name](x, emb, train)
            skips.append(x)
        for spec in architecture.decoder:
            if spec.concat:
                x = self.tap(f"{spec.name}.concat", mp_cat(x, skips.pop(), self.config.concat_balance))
            x = self.dec[spec.name](x, emb, train)
        return self.out_conv(x, gain=self.out_gain).transpose(0, 3, 1, 2)

    def embed(self, noise_labels: Array | Twofold, class_labels: Array | None) -> Array:
        if not isinstance(noise_labels, Twofold):
            noise_labels = Twofold.of(noise_labels)
        emb = self.emb_t_linear(self.emb_t_fourier(noise_labels))
        if self.emb_label is not None:
            if class_labels is None:
                raise ValueError("a class-conditional UNet needs class_labels; zeros mean no class")
            label = self.emb_label(self.tap("label_scale", class_labels * math.sqrt(self.config.label_dim)))
            emb = self.tap("emb_sum", mp_sum(emb, label, self.config.label_balance))
        return self.tap("emb_silu", mp_silu(emb))


def _labels(config: EDM2Config, class_labels: Array | None, dtype) -> Array | None:
    """Labels as the U-Net wants them: none for an unconditional network, zeros [1, label_dim] for None.

    Raises: ValueError for anything but one-hot vectors; class numbers would be taken for one where N = label_dim.
    """
    if config.label_dim == 0:
        return None
    if class_labels is None:
        return jnp.zeros((1, config.label_dim), dtype)
    class_labels = jnp.asarray(class_labels)
    numbers = class_labels.ndim < 2 and jnp.issubdtype(class_labels.dtype, jnp.integer)
    if numbers or class_labels.shape[-1:] != (config.label_dim,):
        found = f"{class_labels.dtype} {list(class_labels.shape)}"
        raise ValueError(f"class_labels must be one-hot [N, {config.label_dim}], not {found}; see jax.nn.one_hot")
    return class_labels.astype(dtype).reshape(-1, config.label_dim)


class Precond(Tapped):
    """The EDM2 denoiser D(x; sigma, labels) and its uncertainty logvar = u(sigma) (Eq. 21).

    D, logvar = net.apply(variables, x, sigma, class_labels, return_logvar=True)
    """

    config: EDM2Config
    dtype: Any = jnp.float32
    folded: Folded = ""

    def setup(self):
        self.unet = UNet(self.config, folded=self.folded)
        self.logvar_fourier_t = MPFourier(self.config.logvar_channels)
        self.logvar_linear = MPConv(self.config.logvar_channels, 1, folded=self.folded)

    def __call__(
        self,
        x: Array,
        sigma: Array,
        class_labels: Array | None = None,
        *,
        return_logvar: bool = False,
        train: bool = False,
    ) -> Array | tuple[Array, Array]:
        """x [N, C, H, W]; sigma > 0, noise standard deviation, scalar or [N]; class_labels [N, label_dim] or None.

        Returns D [N, C, H, W], or D and logvar [N, 1, 1, 1] ([1, 1, 1, 1] for a scalar sigma), in float32.
        Dropout is active with train=True and needs rngs={"dropout": key}.
        """
        full = wide(self.dtype)
        x = jnp.asarray(x, full)
        sigma = jnp.asarray(sigma, full).reshape(-1, 1, 1, 1)
        sigma_data = self.config.sigma_data
        total = jnp.square(sigma) + sigma_data**2
        c_skip = sigma_data**2 / total
        c_in = lax.rsqrt(total)
        c_out = sigma * sigma_data * c_in
        log_sigma = twofold.log(sigma.reshape(-1))
        c_noise = self.tap("c_noise", Twofold(log_sigma.hi / 4, log_sigma.lo / 4))
        scaled = self.tap("scaled_input", (c_in * x).astype(self.dtype))

        labels = _labels(self.config, class_labels, full)
        raw = self.unet(scaled, c_noise, labels, train)
        denoised = self.tap("denoised", c_skip * x + c_out * raw.astype(full))
        if self.is_initializing() or return_logvar:
            logvar = self.logvar_linear(self.logvar_fourier_t(c_noise)).reshape(-1, 1, 1, 1)
        return (denoised, logvar) if return_logvar else denoised


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
        fourier = self.unet_kwargs.get("use_fourier", False)
        bandwidth = self.unet_kwargs.get("fourier_bandwidth", 1.0)
        channels = self.logvar_channels
        self.unet = UNet(self.config, fourier, bandwidth)
        self.logvar_fourier_t = MPFourier(channels, bandwidth) if fourier else MPPositional(channels)
        self.logvar_linear = MPConv(channels, 1)

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
        labels = _labels(self.config, class_labels, jnp.float32)
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
