"""Training of EDM2 networks as the paper describes it: loss, learning rate, power-function EMA.

Equation numbers refer to arXiv 2312.02696. `torch_ref.snapshot` embeds this file's source for `EDM2Loss`, so it
imports torch and numpy alone.
"""

import copy
import math

import numpy as np
import torch


class EDM2Loss:
    """The denoising loss weighted by learned uncertainty (Eqs. 14, 15, 21), elementwise [N, C, H, W].

    P_mean, P_std: mean and standard deviation of ln(sigma). sigma_data: standard deviation of the training data.
    """

    def __init__(self, P_mean=-0.4, P_std=1.0, sigma_data=0.5):
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data

    def __call__(self, net, images, labels=None):
        shape = [images.shape[0], 1, 1, 1]
        sigma = torch.exp(self.P_mean + self.P_std * torch.randn(shape, device=images.device))
        noisy = images + sigma * torch.randn_like(images)
        denoised, logvar = net(noisy, sigma, labels, return_logvar=True)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        return weight / logvar.exp() * (denoised - images) ** 2 + logvar


def learning_rate(nimg, batch_size, ref_lr, ref_batches, rampup_nimg):
    """Linear ramp over the first `rampup_nimg` images, then inverse square root decay from `ref_batches` (Eq. 67)."""
    decay = 1 / math.sqrt(max(nimg / (ref_batches * batch_size), 1)) if ref_batches else 1
    rampup = min(nimg / rampup_nimg, 1) if rampup_nimg else 1
    return ref_lr * decay * rampup


def power_function_exponent(std):
    """Exponent gamma of the power-function EMA profile whose relative standard deviation is `std` (Eq. 126)."""
    t = float(std) ** -2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class PowerFunctionEMA:
    """Averages of a network's parameters over its training, weighted by t^gamma (Eqs. 120-127), one per std."""

    def __init__(self, net, stds=(0.050, 0.100)):
        self.net = net
        self.stds = tuple(stds)
        self.nets = [copy.deepcopy(net) for _ in stds]

    @torch.no_grad()
    def update(self, nimg, batch_size):
        """Blend in the current parameters, after the step that brought the total to `nimg` images."""
        for std, ema in zip(self.stds, self.nets, strict=True):
            beta = (1 - batch_size / nimg) ** (power_function_exponent(std) + 1)
            for new, average in zip(self.net.parameters(), ema.parameters(), strict=True):
                average.lerp_(new, 1 - beta)
