"""Faults that a port can have, to be made on purpose: `make faults` says what edm2-verify says to each.

A fault is an edit of a checkpoint's variables, or of the JAX network's source: one text replaced by another, compiled,
and put in place of the functions that are running. The network that they are made in has every kind of operation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CONFIG = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 5,
    "sigma_data": 0.4,
    "logvar_channels": 16,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "channel_mult_noise": 2,
    "num_blocks": 1,
    "attn_resolutions": [4],
    "label_balance": 0.4,
    "concat_balance": 0.35,
    "resample_filter": [1, 3, 2, 1],
    "channels_per_head": 8,
    "dropout": 0.2,
    "res_balance": 0.3,
    "attn_balance": 0.4,
}

INPUT, EMBEDDING, LOGVAR, OUTPUT = "input", "unet.embedding", "logvar", "output"
CONV_IN, ENC, DOWN, LOW = "unet.enc.8x8_conv", "unet.enc.8x8_block0", "unet.enc.4x4_down", "unet.enc.4x4_block0"
IN0, DEC_LOW, UP, DEC = "unet.dec.4x4_in0", "unet.dec.4x4_block0", "unet.dec.8x8_up", "unet.dec.8x8_block0"


@dataclass(frozen=True)
class Fault:
    """name; where it must be found: a scope and an operation, or a check and (part of) a name in it."""

    name: str
    scope: str
    operation: str
    edit: tuple[str, str, str] | Callable[[dict[str, np.ndarray]], None]  # (file, old, new), or a change of variables

    @property
    def kind(self) -> str:
        return "network" if isinstance(self.edit, tuple) else "checkpoint"


# In the checkpoint


def change(path: str, function: Callable[[np.ndarray], np.ndarray]):
    def edit(leaves):
        leaves[path] = np.asarray(function(np.array(leaves[path])), np.float32)

    return edit


def exchange(one: str, other: str):
    def edit(leaves):
        leaves[one], leaves[other] = leaves[other], leaves[one]

    return edit


def put(index, value):
    def function(array):
        array[index] = value(array[index]) if callable(value) else value
        return array

    return function


def permute_thirds(order):
    """The output channels of attn_qkv: q, k and v interleave innermost."""

    def function(w):
        thirds = w.reshape(-1, 3, *w.shape[1:])
        return thirds[:, order].reshape(w.shape)

    return function


def flip_bit(array):
    array.view(np.uint32).reshape(-1)[7] ^= 1 << 13  # the lowest bit that float16 has
    return array


def swap_channels(array):
    array[:, [0, 1]] = array[:, [1, 0]]
    return array


def low(array, dtype):
    import ml_dtypes

    return array.astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)).astype(np.float32)


def unit(array):
    """Normalised, then rounded to float16 a second time."""
    norm = np.sqrt(np.mean(np.square(array), axis=tuple(range(1, array.ndim)), keepdims=True))
    return low(array / norm, np.float16)


U = "params/unet/"
W = "/mpconv_weight"
CHECKPOINT = [
    Fault("kernel transposed in space", ENC, "conv_res0", change(f"{U}enc_8x8_block0/conv_res0{W}", lambda w: w.swapaxes(2, 3))),
    Fault("kernel transposed out-in", ENC, "conv_res1", change(f"{U}enc_8x8_block0/conv_res1{W}", lambda w: w.swapaxes(0, 1))),
    Fault("kernel flipped", DEC, "conv_res0", change(f"{U}dec_8x8_block0/conv_res0{W}", lambda w: w[:, :, ::-1, ::-1])),
    Fault("q and k swapped", LOW, "attn_qkv", change(f"{U}enc_4x4_block0/attn_qkv{W}", permute_thirds([1, 0, 2]))),
    Fault("k and v swapped", IN0, "attn_qkv", change(f"{U}dec_4x4_in0/attn_qkv{W}", permute_thirds([0, 2, 1]))),
    Fault("q, k, v in blocks, not interleaved", DEC_LOW, "attn_qkv",
          change(f"{U}dec_4x4_block0/attn_qkv{W}", lambda w: w.reshape(-1, 3, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape))),
    Fault("one channel pair swapped", UP, "conv_res0", change(f"{U}dec_8x8_up/conv_res0{W}", swap_channels)),
    Fault("one value times 1 + 1e-3", DOWN, "conv_res1", change(f"{U}enc_4x4_down/conv_res1{W}", put((1, 2, 0, 1), lambda v: v * (1 + 1e-3)))),
    Fault("one bit of one weight", LOW, "conv_skip", change(f"{U}enc_4x4_block0/conv_skip{W}", flip_bit)),
    Fault("one bit of out_conv", "unet.out_conv", "conv", change(f"{U}out_conv{W}", flip_bit)),
    Fault("one weight negated", DEC, "conv_skip", change(f"{U}dec_8x8_block0/conv_skip{W}", put((2, 3, 0, 0), lambda v: -v))),
    Fault("emb_gain lost (0)", DOWN, "emb_linear", change(f"{U}enc_4x4_down/emb_gain", lambda g: 0 * g)),
    Fault("emb_gain lost (1)", DEC, "emb_linear", change(f"{U}dec_8x8_block0/emb_gain", lambda g: g * 0 + 1)),
    Fault("emb_gains of two blocks exchanged", ENC, "emb_linear", exchange(f"{U}enc_8x8_block0/emb_gain", f"{U}dec_8x8_up/emb_gain")),
    Fault("out_gain lost", "unet.out_conv", "conv", change(f"{U}out_gain", lambda g: g * 0 + 1)),
    Fault("Fourier phases off by one", EMBEDDING, "emb_fourier", change("constants/unet/emb_t_fourier/phases", lambda p: np.roll(p, 1))),
    Fault("Fourier phases plus 1", EMBEDDING, "emb_fourier", change("constants/unet/emb_t_fourier/phases", lambda p: p + 1)),
    Fault("Fourier frequencies without 2 pi", EMBEDDING, "emb_fourier", change("constants/unet/emb_t_fourier/freqs", lambda f: f / (2 * np.pi))),
    Fault("logvar's phases off by one", LOGVAR, "logvar_fourier", change("constants/logvar_fourier_t/phases", lambda p: np.roll(p, 1))),
    Fault("logvar's and the embedding's frequencies exchanged", EMBEDDING, "emb_fourier",
          exchange("constants/unet/emb_t_fourier/freqs", "constants/logvar_fourier_t/freqs")),
    Fault("two layers of one shape exchanged", ENC, "conv_res0", exchange(f"{U}enc_8x8_block0/conv_res0{W}", f"{U}enc_8x8_block0/conv_res1{W}")),
    Fault("layers of two blocks exchanged", LOW, "conv_res1", exchange(f"{U}enc_4x4_block0/conv_res1{W}", f"{U}dec_4x4_in0/conv_res1{W}")),
    Fault("float16 rounding twice", DEC, "conv_res1", change(f"{U}dec_8x8_block0/conv_res1{W}", unit)),
    Fault("rounded to bfloat16", EMBEDDING, "emb_label", change(f"{U}emb_label{W}", lambda w: low(w, "bfloat16"))),
    Fault("two classes exchanged", EMBEDDING, "emb_label", change(f"{U}emb_label{W}", swap_channels)),
    Fault("noise layer transposed", EMBEDDING, "emb_noise", change(f"{U}emb_t_linear{W}", lambda w: w.T)),
    Fault("input channels in BGR order", CONV_IN, "conv", change(f"{U}enc_8x8_conv{W}", lambda w: w[:, [2, 1, 0, 3]])),
    Fault("ones channel first", CONV_IN, "conv", change(f"{U}enc_8x8_conv{W}", lambda w: w[:, [3, 0, 1, 2]])),
    Fault("skip half of the input channels first", DEC, "conv_res0", change(f"{U}dec_8x8_block0/conv_res0{W}", lambda w: np.roll(w, 8, axis=1))),
    Fault("a weight is NaN", DEC_LOW, "attn_proj", change(f"{U}dec_4x4_block0/attn_proj{W}", put((0, 0, 0, 0), np.nan))),
    Fault("logvar's layer zero", LOGVAR, "logvar_linear", change(f"params/logvar_linear{W}", lambda w: 0 * w)),
    Fault("attention's projection transposed", LOW, "attn_proj", change(f"{U}enc_4x4_block0/attn_proj{W}", lambda w: w.swapaxes(0, 1))),
]  # fmt: skip

# In the network: (file, old, new); `old` must occur in the file, and only its first occurrence is replaced

OPS, NET, TWO, TRAIN, EMA, SAMPLE, LEVELS = "ops", "network", "twofold", "training.loss", "ema", "sampling", "settings"
CONVOLVE = "return convolve(x, w, self.kernel[0] // 2, self.layout.kind)"
NETWORK = [
    Fault("eps 1e-6", EMBEDDING, "emb_noise", (OPS, "eps: float = 1e-4", "eps: float = 1e-6")),
    Fault("eps inside the root", EMBEDDING, "emb_noise", (OPS, "norm = norm * math.sqrt(norm.size / x.size) + eps",
          "norm = jnp.sqrt(jnp.square(norm) * (norm.size / x.size) + eps)")),
    Fault("eps added before the scaling", EMBEDDING, "emb_noise", (OPS, "norm * math.sqrt(norm.size / x.size) + eps", "(norm + eps) * math.sqrt(norm.size / x.size)")),
    Fault("norm not scaled", EMBEDDING, "emb_noise", (OPS, "norm * math.sqrt(norm.size / x.size) + eps", "norm + eps")),
    Fault("silu constant 0.6", EMBEDDING, "emb_silu", (OPS, "/ 0.596", "/ 0.6")),
    Fault("silu constant 0.5964", EMBEDDING, "emb_silu", (OPS, "/ 0.596", "/ 0.5964")),
    Fault("relu for silu", EMBEDDING, "emb_silu", (OPS, "jax.nn.silu", "jax.nn.relu")),
    Fault("gelu for silu", EMBEDDING, "emb_silu", (OPS, "jax.nn.silu", "jax.nn.gelu")),
    Fault("sum's shares swapped", EMBEDDING, "emb_sum", (OPS, "mixed = a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)", "mixed = b + (a - b) * t")),
    Fault("sum not normalised", EMBEDDING, "emb_sum", (OPS, "return (mixed / math.sqrt((1 - t) ** 2 + t**2))", "return (mixed)")),
    Fault("concatenation's shares swapped", DEC_LOW, "concat", (OPS, "(scale / math.sqrt(na) * (1 - t)), b.astype(full) * (scale / math.sqrt(nb) * t)", "(scale / math.sqrt(na) * t), b.astype(full) * (scale / math.sqrt(nb) * (1 - t))")),
    Fault("concatenation reversed", DEC_LOW, "concat", (OPS, "jnp.concatenate([a, b]", "jnp.concatenate([b, a]")),
    Fault("concatenation without sqrt of channels", "unet.dec.4x4_block1", "concat", (OPS, "scale / math.sqrt(na)", "scale / math.sqrt(nb)")),
    Fault("downsampling filter not normalised", DOWN, "resample", (OPS, "np.asarray(taps, np.float64) / np.sum(taps)", "np.asarray(taps, np.float64) / len(taps)")),
    Fault("a filter tap off", DOWN, "resample", (OPS, "np.asarray(taps, np.float64) / np.sum(taps)", "np.asarray([*taps[:-1], taps[0] + 0.01], np.float64) / np.sum(taps)")),
    Fault("downsampling filter mirrored", DOWN, "resample", (OPS, "_filter(taps)\n    pairs", "_filter(taps[::-1])\n    pairs")),
    Fault("upsampling filter not mirrored", UP, "resample", (OPS, "_filter(taps)\n    terms", "_filter(taps[::-1])\n    terms")),
    Fault("upsampling without the factor 4", UP, "resample", (OPS, "2 * f[k] if", "f[k] if")),
    Fault("upsampling shifted by a pixel", UP, "resample", (OPS, "_shifted(x, d, axis)", "_shifted(x, d + 1, axis)")),
    Fault("downsampling shifted by a pixel", DOWN, "resample", (OPS, "keepdims=False), d, axis)", "keepdims=False), d + 1, axis)")),
    Fault("weights not normalised", EMBEDDING, "emb_noise", (OPS, "return normalize(w) * (scale", "return w * (scale")),
    Fault("weights normalised over the wrong axes", EMBEDDING, "emb_noise", (OPS, "return normalize(w) * (scale", "return normalize(w, 0) * (scale")),
    Fault("fan-out for fan-in", EMBEDDING, "emb_label", (OPS, "1 / math.sqrt(math.prod(w.shape[1:]))", "1 / math.sqrt(w[:, 0].size)")),
    Fault("gains ignored", ENC, "emb_linear", (OPS, "(scale if gain is None else gain.astype(w.dtype) * scale)", "scale")),
    Fault("gains squared", ENC, "emb_linear", (OPS, "gain.astype(w.dtype) * scale", "jnp.square(gain.astype(w.dtype)) * scale")),
    Fault("convolution kernel flipped", CONV_IN, "conv", (NET, "convolve(x, w,", "convolve(x, w[:, :, ::-1, ::-1],")),
    Fault("convolution in bfloat16", CONV_IN, "conv", (NET, CONVOLVE,
          "return convolve(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), self.kernel[0] // 2).astype(x.dtype)")),
    Fault("circular padding", CONV_IN, "conv", (NET, CONVOLVE,
          "p = self.kernel[0] // 2; return convolve(jnp.pad(x, [(0, 0), (p, p), (p, p), (0, 0)], mode='wrap'), w, 0)")),
    Fault("sin for cos", EMBEDDING, "emb_fourier", (NET, "twofold.cos(column * freqs + phases)", "jnp.sin((column * freqs + phases).hi)")),
    Fault("Fourier features without sqrt 2", EMBEDDING, "emb_fourier", (NET, "twofold.cos(column * freqs + phases) * math.sqrt(2)", "twofold.cos(column * freqs + phases)")),
    Fault("phases forgotten", EMBEDDING, "emb_fourier", (NET, "column * freqs + phases)", "column * freqs)")),
    Fault("ln sigma / 2", INPUT, "c_noise", (NET, "Twofold(log_sigma.hi / 4, log_sigma.lo / 4)", "Twofold(log_sigma.hi / 2, log_sigma.lo / 2)")),
    Fault("log2 sigma", INPUT, "c_noise", (NET, "twofold.log(sigma.reshape(-1))", "Twofold.of(jnp.log2(sigma.reshape(-1)))")),
    Fault("ln of sigma squared", INPUT, "c_noise", (NET, "twofold.log(sigma.reshape(-1))", "twofold.log(jnp.square(sigma.reshape(-1)))")),
    Fault("c_in of EDM without sigma_data", INPUT, "scaled_input", (NET, "c_in = lax.rsqrt(total)", "c_in = lax.rsqrt(jnp.square(sigma) + 1)")),
    Fault("c_in forgotten", INPUT, "scaled_input", (NET, "(c_in * x).astype(self.dtype)", "x.astype(self.dtype)")),
    Fault("c_skip of sigma, not squared", OUTPUT, "denoised", (NET, "c_skip = sigma_data**2 / total", "c_skip = sigma_data / total")),
    Fault("c_out of EDM1's sampler", OUTPUT, "denoised", (NET, "c_out = sigma * sigma_data * c_in", "c_out = sigma * c_in")),
    Fault("skip connection of the denoiser forgotten", OUTPUT, "denoised", (NET, "c_skip * x + c_out * raw.astype(full)", "c_out * raw.astype(full)")),
    Fault("F returned for D", OUTPUT, "denoised", (NET, "c_skip * x + c_out * raw.astype(full)", "raw.astype(full)")),
    Fault("sigma_data 0.5 whatever the configuration", INPUT, "scaled_input", (NET, "sigma_data = self.config.sigma_data", "sigma_data = 0.5")),
    Fault("logvar from sigma", LOGVAR, "logvar_fourier", (NET, "self.logvar_linear(self.logvar_fourier_t(c_noise))", "self.logvar_linear(self.logvar_fourier_t(Twofold.of(sigma.reshape(-1))))")),
    Fault("logvar halved", LOGVAR, "logvar", (NET, "self.logvar_linear(self.logvar_fourier_t(c_noise)).reshape(-1, 1, 1, 1)", "0.5 * self.logvar_linear(self.logvar_fourier_t(c_noise)).reshape(-1, 1, 1, 1)")),
    Fault("labels unscaled", EMBEDDING, "label_scale", (NET, "class_labels * math.sqrt(self.config.label_dim)", "class_labels")),
    Fault("label forgotten in the embedding", EMBEDDING, "emb_sum", (NET, "mp_sum(emb, label, self.config.label_balance)", "mp_sum(emb, emb, self.config.label_balance)")),
    Fault("label balance 0.5 whatever the configuration", EMBEDDING, "emb_sum", (NET, "mp_sum(emb, label, self.config.label_balance)", "mp_sum(emb, label, 0.5)")),
    Fault("embedding without SiLU", EMBEDDING, "emb_silu", (NET, 'return self.tap("emb_silu", mp_silu(emb))', 'return self.tap("emb_silu", emb)')),
    Fault("zeros for the ones", CONV_IN, "ones", (NET, "jnp.ones_like(x[..., :1])", "jnp.zeros_like(x[..., :1])")),
    Fault("ones first", CONV_IN, "ones", (NET, "[x, jnp.ones_like(x[..., :1])]", "[jnp.ones_like(x[..., :1]), x]")),
    Fault("skip order reversed", DEC_LOW, "concat", (NET, "skips.pop()", "skips.pop(0)")),
    Fault("skip of the block before", DEC_LOW, "concat", (NET, "skips.pop()", "skips[-2]")),
    Fault("concat balance 0.5 whatever the configuration", DEC_LOW, "concat", (NET, "self.config.concat_balance", "0.5")),
    Fault("embedding's layer without + 1", ENC, "modulation", (NET, "gain=self.emb_gain) + 1", "gain=self.emb_gain)")),
    Fault("modulation added", ENC, "modulation", (NET, "y * c[:, None, None, :]", "y + c[:, None, None, :]")),
    Fault("modulation after SiLU", ENC, "modulation", (NET, 'y = self.tap("modulation", y * c[:, None, None, :].astype(y.dtype))', 'y = self.tap("modulation", mp_silu(y) * c[:, None, None, :].astype(y.dtype))')),
    Fault("modulation of one image for all", ENC, "modulation", (NET, "y * c[:, None, None, :]", "y * c[:1, None, None, :]")),
    Fault("pixel norm missing", ENC, "pixel_norm", (NET, 'self.tap("pixel_norm", normalize(x, axis=-1))', 'self.tap("pixel_norm", x)')),
    Fault("pixel norm over rows", ENC, "pixel_norm", (NET, 'self.tap("pixel_norm", normalize(x, axis=-1))', 'self.tap("pixel_norm", normalize(x, axis=2))')),
    Fault("layer norm for pixel norm", ENC, "pixel_norm", (NET, 'self.tap("pixel_norm", normalize(x, axis=-1))', 'self.tap("pixel_norm", normalize(x))')),
    Fault("pixel norm with eps 1e-6", ENC, "pixel_norm", (NET, "normalize(x, axis=-1)", "normalize(x, axis=-1, eps=1e-6)")),
    Fault("pixel norm before conv_skip", LOW, "conv_skip", (NET, 'x = self.skip(x)\n            x = self.tap("pixel_norm", normalize(x, axis=-1))', 'x = self.tap("pixel_norm", normalize(x, axis=-1))\n            x = self.skip(x)')),
    Fault("pixel norm in decoders too", IN0, "res_sum", (NET, 'if self.spec.flavor == "dec":\n            x = self.skip(x)', 'if self.spec.flavor == "dec":\n            x = normalize(self.skip(x), axis=-1)')),
    Fault("residual branch and main path exchanged", ENC, "res_sum", (NET, 'self.tap("res_sum", mp_sum(x, y, self.config.res_balance))', 'self.tap("res_sum", mp_sum(y, x, self.config.res_balance))')),
    Fault("res balance of the paper's older version", ENC, "res_sum", (NET, "self.config.res_balance", "0.31")),
    Fault("SiLU of the residual branch missing", ENC, "silu0", (NET, 'self.tap("silu0", mp_silu(x))', 'self.tap("silu0", x)')),
    Fault("second SiLU missing", ENC, "silu1", (NET, 'self.tap("silu1", mp_silu(y))', 'self.tap("silu1", y)')),
    Fault("dropout left on", ENC, "dropout", (NET, "self.drop(y, deterministic=not train)", "self.drop(y, deterministic=False, rng=jax.random.key(0))")),
    Fault("dropout left on, without a generator", ENC, "dropout", (NET, "self.drop(y, deterministic=not train)", "self.drop(y, deterministic=False)")),
    Fault("dropout's rescaling left on", ENC, "dropout", (NET, "self.drop(y, deterministic=not train)", "y / (1 - self.config.dropout)")),
    Fault("clip missing", ENC, "clip", (NET, "x = jnp.clip(x, -self.config.clip_act, self.config.clip_act)", "pass")),
    Fault("clip at twice its value", ENC, "clip", (NET, "jnp.clip(x, -self.config.clip_act, self.config.clip_act)", "jnp.clip(x, -2 * self.config.clip_act, 2 * self.config.clip_act)")),
    Fault("clip from above only", ENC, "clip", (NET, "jnp.clip(x, -self.config.clip_act, self.config.clip_act)", "jnp.minimum(x, self.config.clip_act)")),
    Fault("tanh for clip", ENC, "clip", (NET, "jnp.clip(x, -self.config.clip_act, self.config.clip_act)", "jnp.tanh(x / self.config.clip_act) * self.config.clip_act")),
    Fault("v not normalised", LOW, "attention", (NET, "q, k, v = (y[..., i] for i in range(3))", "raw = self.attn_qkv(x).reshape(n, h * w, heads, c // heads, 3); q, k, v = y[..., 0], y[..., 1], raw[..., 2]")),
    Fault("q, k and v not normalised", LOW, "qkv_norm", (NET, 'self.tap("qkv_norm", normalize(y, axis=3))', 'self.tap("qkv_norm", y)')),
    Fault("qkv normalised over pixels", LOW, "qkv_norm", (NET, "normalize(y, axis=3)", "normalize(y, axis=1)")),
    Fault("softmax over queries", LOW, "attention", (NET, "astype(full), axis=3)", "astype(full), axis=2)")),
    Fault("softmax over heads", LOW, "attention", (NET, "astype(full), axis=3)", "astype(full), axis=1)")),
    Fault("logits not divided", LOW, "attention", (NET, "(k.astype(full) / math.sqrt(c // heads))", "k")),
    Fault("logits divided by channels", LOW, "attention", (NET, "/ math.sqrt(c // heads)", "/ (c // heads)")),
    Fault("logits divided by sqrt of all channels", LOW, "attention", (NET, "/ math.sqrt(c // heads)", "/ math.sqrt(c)")),
    Fault("q and k exchanged in code", LOW, "attention", (NET, "q, k, v = (y", "k, q, v = (y")),
    Fault("v and k exchanged in code", LOW, "attention", (NET, "q, k, v = (y", "q, v, k = (y")),
    Fault("qkv split in blocks", LOW, "qkv_norm", (NET, ".reshape(n, h, w, heads, c // heads, 3).reshape(n, h * w, heads, c // heads, 3)", ".reshape(n, h * w, heads, 3, c // heads).swapaxes(3, 4)")),
    Fault("heads innermost", LOW, "qkv_norm", (NET, ".reshape(n, h, w, heads, c // heads, 3).reshape(n, h * w, heads, c // heads, 3)", ".reshape(n, h * w, c // heads, heads, 3).swapaxes(2, 3)")),
    Fault("image transposed by attention", LOW, "attention", (NET, "y.reshape(n, h, w, heads, c // heads).reshape(x.shape)", "y.reshape(n, h, w, heads, c // heads).swapaxes(1, 2).reshape(x.shape)")),
    Fault("attention's sum with the residual balance", LOW, "attn_sum", (NET, "self.attend(x), self.config.attn_balance", "self.attend(x), self.config.res_balance")),
    Fault("attention's branch added to zero", LOW, "attn_sum", (NET, "mp_sum(x, self.attend(x), self.config.attn_balance)", "self.attend(x)")),
    Fault("out_gain ignored", "unet.out_conv", "conv", (NET, "self.out_conv(x, gain=self.out_gain)", "self.out_conv(x)")),
    Fault("a tap removed", ENC, "silu1", (NET, 'y = self.tap("silu1", mp_silu(y))', "y = mp_silu(y)")),
]  # fmt: skip

# Found by other checks than the forward pass: scope is the check, operation part of the first failing name

BEYOND = [
    Fault("norm without a gradient", "gradients", "", (OPS, "x.astype(wide(x.dtype))), axis", "jax.lax.stop_gradient(x).astype(wide(x.dtype))), axis")),
    Fault("logvar detached from the loss", "gradients", "", (TRAIN, "weight / jnp.exp(logvar)", "weight / jnp.exp(jax.lax.stop_gradient(logvar))")),
    Fault("loss without + logvar", "gradients", "loss", (TRAIN, "jnp.square(denoised - images) + logvar", "jnp.square(denoised - images)")),
    Fault("loss weight without the square", "gradients", "loss", (TRAIN, "jnp.square(sigma * sigma_data)", "(sigma * sigma_data)")),
    Fault("noise added without sigma", "gradients", "loss", (TRAIN, "images + sigma * noise", "images + noise")),
    Fault("weights not projected in training", "gradients", "", (TRAIN, "return normalize(value) if", "return value if")),
    Fault("projected over the wrong axes", "gradients", "", (TRAIN, "return normalize(value) if", "return normalize(value, 0) if")),
    Fault("EMA exponent off by one", "gradients", "ema/", (EMA, "return before * (power_function_exponent(std) + 1)", "return before * power_function_exponent(std)")),
    Fault("EMA of the old value", "gradients", "ema/", (EMA, "old + (new - old) * share", "new + (old - new) * share")),
    Fault("gains without a gradient", "gradients", "gain", (OPS, "gain.astype(w.dtype) * scale", "jax.lax.stop_gradient(gain).astype(w.dtype) * scale")),
    Fault("clipping without a gradient", "gradients", "", (NET, "x = jnp.clip(x,", "x = x - jax.lax.stop_gradient(x) * 0.5 - 0.5 * x + jnp.clip(jax.lax.stop_gradient(x),")),
    Fault("Euler for Heun", "trajectory", "", (SAMPLE, "(state.slope + slope) / 2, slope)", "state.slope, slope)")),
    Fault("corrector's slope at the old noise level", "trajectory", "", (SAMPLE, "rows.append((end, end - start, 1,", "rows.append((start, end - start, 1,")),
    Fault("schedule with rho 6", "trajectory", "", (LEVELS, "rho: float = 7.0", "rho: float = 6.0")),
    Fault("schedule ends at sigma_min", "trajectory", "", (LEVELS, ".tolist(), 0.0]", ".tolist(), sigma_min]")),
]  # fmt: skip
# Found by a few steps of training: the operation is (part of) the first name that fails

RECIPE, OPTIMIZER, STEP = "training.recipe", "training.optimizer", "training.step"
RATE = "rate = rate / jnp.sqrt(jnp.maximum(images / (self.decay_batches * self.batch_size), 1.0))"
RAMP = "return rate * jnp.minimum(images / self.rampup_images, 1.0) if self.rampup_images else rate"
ADAM = "optax.scale_by_adam(*recipe.betas, eps=recipe.eps)"
AVERAGED = "average, variables, images_seen"
SUMMED = "return loss.sum() * (recipe.loss_scaling / count), loss.mean(axis=(1, 2, 3))"
TRAINING = [
    Fault(name, "training", operation, (file, old, new))
    for name, operation, file, old, new in (
        ("no ramp-up of the learning rate", "rate", RECIPE, RAMP, "return rate"),
        ("the ramp-up goes on above 1", "rate", RECIPE, RAMP, "return rate * images / self.rampup_images"),
        ("no decay of the learning rate", "rate", RECIPE, RATE, "pass"),
        ("the rate falls with images, not with their root", "rate", RECIPE, RATE, RATE.replace("jnp.sqrt", "")),
        ("decay counts images, not batches", "rate", RECIPE, RATE, RATE.replace("(self.decay_batches * self.batch_size)", "self.decay_batches")),
        ("the decay begins at once", "rate", RECIPE, RATE, RATE.replace("jnp.maximum(", "(1 + ").replace(", 1.0)", ")")),
        ("the rate of the step after", "", STEP, "images=before", "images=before + count"),
        ("betas exchanged", "", OPTIMIZER, ADAM, ADAM.replace("*recipe.betas", "*recipe.betas[::-1]")),
        ("beta2 0.999 whatever the recipe", "", OPTIMIZER, ADAM, ADAM.replace("*recipe.betas", "recipe.betas[0], 0.999")),
        ("beta1 0 whatever the recipe", "", OPTIMIZER, ADAM, ADAM.replace("*recipe.betas", "0.0, recipe.betas[1]")),
        ("eps inside the root", "", OPTIMIZER, ADAM, "optax.scale_by_adam(*recipe.betas, eps=0.0, eps_root=recipe.eps**2)"),
        ("eps 1e-8 whatever the recipe", "", OPTIMIZER, ADAM, "optax.scale_by_adam(*recipe.betas)"),
        ("Nesterov's momentum", "", OPTIMIZER, ADAM, ADAM.replace(")", ", nesterov=True)")),
        ("gradients clipped by their norm", "", OPTIMIZER, "zero_where_not_finite(),", "optax.clip_by_global_norm(1e-3),"),
        ("gradients clipped value by value", "", OPTIMIZER, "zero_where_not_finite(),", "optax.clip(1e-4),"),
        ("decoupled weight decay", "", OPTIMIZER, ADAM, ADAM + ", optax.add_decayed_weights(0.01)"),
        ("uphill", "", OPTIMIZER, "step = -rate(", "step = rate("),
        ("averages of the normalised weights", "ema-", STEP, AVERAGED, "average, project_to_sphere(variables), images_seen"),
        ("averages of the weights before the step", "ema-", STEP, AVERAGED, "average, state.variables, images_seen"),
        ("averages count a step too many", "ema-", STEP, "images_seen=seen.astype(jnp.float32)", "images_seen=seen.astype(jnp.float32) + count"),
        ("averages are updated as if images came one by one", "ema-", STEP, "batch_size=jnp.float32(count)", "batch_size=jnp.float32(1)"),
        ("all averages of one length", "ema-", STEP, "std=std\n", "std=min(state.averages)\n"),
        ("weights are not normalised before the gradient", "", STEP, "variables = project_to_sphere(state.variables)", "variables = state.variables"),
        ("the update is added to the raw weights", "", STEP, "optax.apply_updates(variables[\"params\"], updates)", "optax.apply_updates(state.variables[\"params\"], updates)"),
        ("weights are normalised after the step, too", "", STEP, "optax.apply_updates(variables[\"params\"], updates)}", "project_to_sphere(optax.apply_updates(variables[\"params\"], updates))}"),
        ("loss scaling forgotten", "", STEP, SUMMED, SUMMED.replace("recipe.loss_scaling", "1.0")),
        ("the gradient of the mean, not of the sum", "", STEP, SUMMED, SUMMED.replace("loss.sum()", "loss.mean()")),
        ("the gradient of each part's own mean", "", STEP, SUMMED, SUMMED.replace("count)", "images.shape[0])")),
        ("the gradient of the last part alone", "", STEP, "jax.tree_util.tree_map(jnp.add, total, gradient), losses", "gradient, losses"),
        ("the first part's gradient twice", "", STEP, "jax.tree_util.tree_map(jnp.add, total, gradient), losses", "jax.tree_util.tree_map(lambda t, g: jnp.where(t == 0, 2 * g, t), total, gradient), losses"),
        ("parts with each other's labels", "", STEP, "(*each, dropouts)", "(*each[:3], None if labels is None else each[3][::-1], dropouts)"),
        ("parts with each other's noise", "", STEP, "(*each, dropouts)", "(*each[:2], each[2][::-1], *each[3:], dropouts)"),
        ("images counted by parts", "images", STEP, "state.images + jnp.uint32(count)", "state.images + jnp.uint32(count * parts)"),
        ("P_std for the variance of ln(sigma)", "", TRAIN, "jnp.exp(P_mean + P_std * levels)", "jnp.exp(P_mean + jnp.sqrt(P_std) * levels)"),
        ("P_mean forgotten", "", TRAIN, "jnp.exp(P_mean + P_std * levels)", "jnp.exp(P_std * levels)"),
        ("Adam begins with one step taken", "", STEP, "optimizer.init(variables[\"params\"]), averages, jnp.uint32(0))", "jax.tree_util.tree_map(lambda x: x + 1 if x.dtype == jnp.int32 else x, optimizer.init(variables[\"params\"])), averages, jnp.uint32(0))"),
    )
]  # fmt: skip
FAULTS = CHECKPOINT + NETWORK + BEYOND + TRAINING
