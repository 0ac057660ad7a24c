"""The EDM2 denoiser in PyTorch, written from the paper; the reference that the JAX network is judged against.

Equation and figure numbers refer to Karras et al., "Analyzing and Improving the Training Dynamics of
Diffusion Models" (arXiv 2312.02696). Constructor arguments and `state_dict` names are those of NVlabs/edm2.

Dtypes. Where NVlabs computes in float32 whatever the activations are (norms, weights, Fourier features,
embeddings, preconditioning), this file computes in `wide(dtype)`: float64 for float64, else float32. So
`Precond(...).double()` is float64 all the way through, and a float32 module gives what NVlabs' gives. Activations
are float16 on CUDA when `use_fp16` is set, as there, or whatever `dtype` says.

This file needs torch alone: `torch_ref.snapshot` embeds its source in the snapshots that it writes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def wide(dtype):
    """The dtype of norms, weights, embeddings and preconditioning, for activations of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalize(x, dim=None, eps=1e-4):
    """x scaled to unit root mean square over `dim` (default: all axes but the first). Pixel norm is dim=1.

    x / (eps + |x| sqrt(norms / elements)), with the norm in `wide` precision; eps is added after the scaling.
    """
    dim = list(range(1, x.ndim)) if dim is None else dim
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide(x.dtype))
    norm = norm * math.sqrt(norm.numel() / x.numel()) + eps
    return x / norm.to(x.dtype)


def resample(x, taps=(1, 1), mode="keep"):
    """Halve ('down') or double ('up') the resolution of x [N, C, H, W] with a separable filter of even length."""
    if mode == "keep":
        return x
    if len(taps) % 2:
        raise ValueError(f"resample_filter must have an even number of taps, not {len(taps)}")
    f = torch.tensor(taps, dtype=wide(x.dtype), device=x.device)
    f = f / f.sum()
    kernel = torch.outer(f, f).to(x.dtype).expand(x.shape[1], 1, -1, -1)
    padding = (len(taps) - 1) // 2
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
    if mode == "up":
        return F.conv_transpose2d(x, kernel * 4, stride=2, padding=padding, groups=x.shape[1])
    raise ValueError(f"resample_mode must be 'keep', 'up' or 'down', not {mode!r}")


def mp_silu(x):
    """Magnitude-preserving SiLU (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a, b, t=0.5):
    """Magnitude-preserving sum (Eq. 88): t is the share of b."""
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a, b, t=0.5):
    """Magnitude-preserving concatenation along the channels (Eq. 103): t is the share of b."""
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale / math.sqrt(na) * (1 - t)), b * (scale / math.sqrt(nb) * t)], dim=1)


class Recorded(nn.Module):
    """A module that remembers its constructor arguments: a snapshot's configuration is read from them."""

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        self.__dict__.update(_init_args=args, _init_kwargs=kwargs)
        return self


class MPFourier(Recorded):
    """Random Fourier features of a scalar (Eq. 75): [N] -> [N, num_channels], unit root mean square."""

    def __init__(self, num_channels, bandwidth=1):
        super().__init__()
        self.freqs: torch.Tensor
        self.phases: torch.Tensor
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels) * bandwidth)
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x):
        dtype = wide(x.dtype)
        angle = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (angle.cos() * math.sqrt(2)).to(x.dtype)


class MPConv(Recorded):
    """Convolution [out, in, kh, kw], or linear layer [out, in] for kernel=[], with normalised weights (Eq. 47).

    While training, each forward pass first replaces the weights by their normalised values (Eq. 66).
    """

    def __init__(self, in_channels, out_channels, kernel):
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x, gain=1):
        w = self.weight.to(wide(x.dtype))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(w))
        # A float16 gain is divided in float16, as NVlabs' generation code does; raise the module first to avoid it.
        w = normalize(w) * (gain / math.sqrt(w[0].numel()))
        w = w.to(x.dtype)
        if w.ndim == 2:
            return x @ w.t()
        return F.conv2d(x, w, padding=w.shape[-1] // 2)


class Block(Recorded):
    """Encoder or decoder block with optional self-attention (Fig. 21): x [N, Cin, H, W], emb [N, Cemb]."""

    def __init__(
        self,
        in_channels,
        out_channels,
        emb_channels,
        flavor="enc",
        resample_mode="keep",
        resample_filter=(1, 1),
        attention=False,
        channels_per_head=64,
        dropout=0,
        res_balance=0.3,
        attn_balance=0.3,
        clip_act=256,
    ):
        super().__init__()
        self.out_channels = out_channels
        self.flavor = flavor
        self.resample_mode = resample_mode
        self.resample_filter = resample_filter
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act

        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, kernel=[3, 3])
        self.emb_linear = MPConv(emb_channels, out_channels, kernel=[])
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=[3, 3])
        self.conv_skip = MPConv(in_channels, out_channels, kernel=[1, 1]) if in_channels != out_channels else None
        self.attn_qkv: Any = MPConv(out_channels, out_channels * 3, kernel=[1, 1]) if self.num_heads else None
        self.attn_proj: Any = MPConv(out_channels, out_channels, kernel=[1, 1]) if self.num_heads else None

    def forward(self, x, emb):
        x = resample(x, self.resample_filter, self.resample_mode)
        if self.flavor == "enc":
            x = self.skip(x)
            x = normalize(x, dim=1)
        y = self.residual(x, emb)
        if self.flavor == "dec":
            x = self.skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.num_heads:
            x = mp_sum(x, self.attend(x), self.attn_balance)
        if self.clip_act is not None:
            x = x.clip(-self.clip_act, self.clip_act)
        return x

    def skip(self, x):
        return x if self.conv_skip is None else self.conv_skip(x)

    def residual(self, x, emb):
        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * c[:, :, None, None].to(y.dtype))
        if self.training and self.dropout:
            y = F.dropout(y, p=self.dropout)
        return self.conv_res1(y)

    def attend(self, x):
        """Cosine attention: q, k and v, interleaved innermost in the channels, are all pixel-normalised."""
        n, _, h, w = x.shape
        y = self.attn_qkv(x).reshape(n, self.num_heads, -1, 3, h * w)
        q, k, v = normalize(y, dim=2).unbind(3)  # each [N, heads, C / heads, H W]
        weights = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
        y = torch.einsum("nhqk,nhck->nhcq", weights, v)
        return self.attn_proj(y.reshape(x.shape))


class UNet(Recorded):
    """The EDM2 U-Net (Fig. 21): x [N, C, H, W], noise_labels [N], class_labels [N or 1, label_dim] -> [N, C, H, W]."""

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        channel_mult_noise=None,
        channel_mult_emb=None,
        num_blocks=3,
        attn_resolutions=(16, 8),
        label_balance=0.5,
        concat_balance=0.5,
        **block_kwargs,
    ):
        super().__init__()
        widths = [model_channels * m for m in channel_mult]
        cnoise = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        cemb = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))

        self.emb_fourier = MPFourier(cnoise)
        self.emb_noise = MPConv(cnoise, cemb, kernel=[])
        self.emb_label = MPConv(label_dim, cemb, kernel=[]) if label_dim else None

        def block(cin, cout, flavor, **kwargs):
            return Block(cin, cout, cemb, flavor=flavor, **kwargs, **block_kwargs)

        self.enc = nn.ModuleDict()
        channels = img_channels + 1  # one channel of ones is appended to the image
        for level, width in enumerate(widths):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(channels, width, kernel=[3, 3])
                channels = width
            else:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, "enc", resample_mode="down")
            for i in range(num_blocks):
                self.enc[f"{res}x{res}_block{i}"] = block(channels, width, "enc", attention=res in attn_resolutions)
                channels = width

        self.dec = nn.ModuleDict()
        skips = [module.out_channels for module in self.enc.values()]
        for level, width in reversed(list(enumerate(widths))):
            res = img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, "dec", attention=True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels, "dec")
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, "dec", resample_mode="up")
            for i in range(num_blocks + 1):
                attention = res in attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = block(channels + skips.pop(), width, "dec", attention=attention)
                channels = width
        self.out_conv = MPConv(channels, img_channels, kernel=[3, 3])

    def forward(self, x, noise_labels, class_labels):
        emb = self.embed(noise_labels, class_labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = module(x, emb)
        return self.out_conv(x, gain=self.out_gain)

    def embed(self, noise_labels, class_labels):
        emb = self.emb_noise(self.emb_fourier(noise_labels))  # [N, Cemb]
        if self.emb_label is not None:
            label = self.emb_label(class_labels * math.sqrt(class_labels.shape[1]))
            emb = mp_sum(emb, label, self.label_balance)
        return mp_silu(emb)


class Precond(Recorded):
    """The denoiser D(x; sigma, labels) of EDM with EDM2's U-Net, and its uncertainty logvar = u(sigma) (Eq. 21).

    x [N, C, H, W]; sigma, standard deviation of the noise, > 0, a scalar or [N]; class_labels [N, label_dim] one-hot,
    or None for zeros. Returns D [N, C, H, W], or (D, logvar [N, 1, 1, 1]) with return_logvar, in `wide` precision
    (logvar [1, 1, 1, 1] for a scalar sigma).
    """

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim,
        use_fp16=True,
        sigma_data=0.5,
        logvar_channels=128,
        **unet_kwargs,
    ):
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16
        self.sigma_data = sigma_data
        self.unet = UNet(img_resolution=img_resolution, img_channels=img_channels, label_dim=label_dim, **unet_kwargs)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1, kernel=[])

    def forward(self, x, sigma, class_labels=None, force_fp32=False, return_logvar=False, dtype=None):
        full = wide(self.unet.out_gain.dtype)
        if dtype is None:
            half = self.use_fp16 and not force_fp32 and x.device.type == "cuda" and full == torch.float32
            dtype = torch.float16 if half else full
        x = x.to(full)
        sigma = sigma.to(full).reshape(-1, 1, 1, 1)
        if self.label_dim == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = torch.zeros([1, self.label_dim], device=x.device, dtype=full)
        else:
            class_labels = class_labels.to(full).reshape(-1, self.label_dim)

        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        c_in = 1 / total.sqrt()
        c_noise = sigma.flatten().log() / 4

        raw = self.unet((c_in * x).to(dtype), c_noise, class_labels)
        denoised = c_skip * x + c_out * raw.to(full)
        if not return_logvar:
            return denoised
        return denoised, self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)
