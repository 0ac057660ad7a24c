"""The EDM2 denoiser in Flax linen: NCHW in, NCHW out, weights as PyTorch stores them, channels last in between.

Equation and figure numbers refer to Karras et al., "Analyzing and Improving the Training Dynamics of
Diffusion Models" (arXiv 2312.02696). Variable names are those of nmboffi/jax-edm2.

`dtype` is what the U-Net's activations are computed in: float32, float16 or bfloat16 (float64 with jax_enable_x64).
Embeddings, norms, weights and preconditioning are float32 (float64 for float64), whatever the variables' dtype.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jax_edm2 import twofold, winograd
from jax_edm2.config import BlockSpec, EDM2Config
from jax_edm2.inputs import check_images, check_sigma, check_trainable, one_hot_labels
from jax_edm2.layout import Folded, Layout
from jax_edm2.ops import convolve, effective_weight, mp_cat, mp_silu, mp_sum, normalize, resample, whole, wide
from jax_edm2.shapes import AnyArray, Images, Labels, Logvar, Sigma
from jax_edm2.twofold import Twofold

Array = AnyArray


class Tapped(nn.Module):
    """A module that names its intermediate values, so that they can be recorded or replaced from outside."""

    def tap(self, name: str, value: Any) -> Any:
        """`value` itself. flax.linen.intercept_methods sees this call: see `converter.verify.taps` for all names."""
        return value


class MPConv(nn.Module):
    """Convolution [out, in, kh, kw], or linear layer [out, in] for kernel=(), with normalised weights (Eq. 47).

    x [N, H, W, in], or [N, in], becomes [N, H, W, out], or [N, out], in its dtype; gain () multiplies that, and is
    already in weights that are folded. kernel: height and width, odd.
    Training must keep the stored weights normalised itself (Eq. 66): see `project_to_sphere`.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    folded: Folded = ""

    def setup(self):
        self.layout = Layout.of((self.out_channels, self.in_channels, *self.kernel), self.folded)
        self.weight = self.param("mpconv_weight", nn.initializers.normal(1.0), self.layout.shape)

    def __call__(self, x: Array, gain: Array | None = None) -> Array:
        w = whole(self.weight, beside=x)
        if not self.folded:
            w = effective_weight(w.astype(wide(x.dtype)), gain)
        w = w.astype(x.dtype)
        if self.layout.kind == "OI":
            return x @ w.T
        if self.layout.kind == "winograd":
            return winograd.convolve(x, w)
        return convolve(x, w, self.kernel[0] // 2, self.layout.kind)


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
        freqs, phases = (Twofold.of(whole(v.value).astype(x.hi.dtype)) for v in (self.freqs, self.phases))
        return twofold.cos(column * freqs + phases) * math.sqrt(2)


class Block(Tapped):
    """Encoder or decoder block with optional self-attention (Fig. 21): x [N, H, W, Cin], emb [N or 1, Cemb].

    Gives [N, H', W', Cout] in x's dtype, with H' and W' half, twice or the same, as the spec says.
    """

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
    """The EDM2 U-Net (Fig. 21): the raw network F(x; c_noise, labels) that `Precond` makes a denoiser of.

    x [N, C, H, W] in any dtype gives F, in the same shape and dtype. noise_labels [N or 1] and class_labels
    [N or 1, label_dim] (ignored if label_dim is 0) in float32; noise_labels may be Twofold.
    Raises: ValueError if there are no class_labels and label_dim is not 0.

    features: the module that turns a noise label into so many features, [N] -> [N, channels]; MPFourier for None.
    remat: what blocks compute is not kept for their derivatives but computed again: less memory, a third more time.
    """

    config: EDM2Config
    folded: Folded = ""
    features: Callable[[int], nn.Module] | None = None
    remat: bool = False

    def setup(self):
        config, conv = self.config, partial(MPConv, folded=self.folded)
        noise, emb, widths = config.noise_channels, config.emb_channels, config.widths
        self.out_gain = self.param("out_gain", nn.initializers.zeros, ())
        self.emb_t_fourier = (self.features or MPFourier)(noise)
        self.emb_t_linear = conv(noise, emb)
        self.emb_label = conv(config.label_dim, emb) if config.label_dim else None
        architecture = config.architecture
        # Flax names the members of a dict after attribute and key: enc_64x64_conv, dec_8x8_in0, ...
        conv_in: dict[str, Any] = {architecture.conv_in: conv(config.img_channels + 1, widths[0], (3, 3))}
        kind = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        block = partial(kind, config=config, folded=self.folded)
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
        """The embedding [N or 1, emb_channels] of noise level and label, in float32."""
        if not isinstance(noise_labels, Twofold):
            noise_labels = Twofold.of(noise_labels)
        emb = self.emb_t_linear(self.emb_t_fourier(noise_labels))
        if self.emb_label is not None:
            if class_labels is None:
                raise ValueError("a class-conditional UNet needs class_labels; zeros mean no class")
            label = self.emb_label(self.tap("label_scale", class_labels * math.sqrt(self.config.label_dim)))
            emb = self.tap("emb_sum", mp_sum(emb, label, self.config.label_balance))
        return self.tap("emb_silu", mp_silu(emb))


class Precond(Tapped):
    """The EDM2 denoiser D(x; sigma, labels) and its uncertainty logvar = u(sigma) (Eq. 21).

    D, logvar = net.apply(variables, x, sigma, class_labels, return_logvar=True)

    D = c_skip x + c_out F(c_in x; ln(sigma) / 4, labels), with the c of Table 1 of arXiv 2206.00364. dtype: of the
    U-Net's activations. folded: what `fold` made of the variables; it alone sets that. remat: as for `UNet`.
    """

    config: EDM2Config
    dtype: Any = jnp.float32
    folded: Folded = ""
    remat: bool = False

    def setup(self):
        self.unet = UNet(self.config, folded=self.folded, remat=self.remat)
        self.logvar_fourier_t = MPFourier(self.config.logvar_channels)
        self.logvar_linear = MPConv(self.config.logvar_channels, 1, folded=self.folded)

    def __call__(
        self,
        x: Images,
        sigma: Sigma | float,
        class_labels: Labels | None = None,
        *,
        return_logvar: bool = False,
        train: bool = False,
    ) -> Images | tuple[Images, Logvar]:
        """x [N, C, H, W]; sigma > 0, noise standard deviation, scalar or [N]; class_labels [N, label_dim] or None.

        Labels are one-hot; zeros, and None, are no class. They are not looked at where label_dim is 0.
        Returns D [N, C, H, W], or D and logvar [N, 1, 1, 1] ([1, 1, 1, 1] for a scalar sigma), in float32.
        Dropout is active with train=True and needs rngs={"dropout": key}.
        Raises: ValueError for inputs of another shape, labels that are not one-hot, a sigma that is not positive (where
        jit hides its value, NaN comes of it), and parameters in float16 with train=True.
        """
        check_images(self.config, x)
        check_sigma(sigma, x.shape[0])
        if train:
            check_trainable(self.variables.get("params", {}))
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

        labels = one_hot_labels(self.config, class_labels, full, x.shape[0])
        raw = self.unet(scaled, c_noise, labels, train)
        denoised = self.tap("denoised", c_skip * x + c_out * raw.astype(full))
        if self.is_initializing() or return_logvar:
            logvar = self.logvar_linear(self.logvar_fourier_t(c_noise)).reshape(-1, 1, 1, 1)
        return (denoised, logvar) if return_logvar else denoised
