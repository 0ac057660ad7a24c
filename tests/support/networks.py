"""Tiny random EDM2 networks for the tests: configurations that vary every option, weights, inputs, and their truth."""

import copy

import numpy as np
import torch
from hypothesis import strategies as st

from jax_edm2.config import ConfigError, EDM2Config
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import randomize

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
TINY_DIGITS = {
    "img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 8, "channel_mult": [1], "num_blocks": 0,
    "attn_resolutions": [8], "channels_per_head": 8, "logvar_channels": 4,
}  # fmt: skip


@st.composite
def configs(draw):
    """Constructor arguments of a valid tiny network, as a dict with lists, as NVlabs' code would have them."""
    levels = draw(st.integers(1, 3))
    resolution = draw(st.sampled_from([4, 6, 8, 10])) * 2 ** (levels - 1)
    kwargs = {
        "img_resolution": min(resolution, 24) if levels < 3 else draw(st.sampled_from([8, 12, 16, 24])),
        "img_channels": draw(st.integers(1, 4)),
        "label_dim": draw(st.sampled_from([0, 1, 3, 10, 200])),
        "use_fp16": draw(st.booleans()),
        "sigma_data": draw(st.sampled_from([0.5, 0.3, 1, 1.25])),
        "logvar_channels": draw(st.sampled_from([4, 33, 128])),
        "model_channels": draw(st.sampled_from([4, 6, 8, 16])),
        "channel_mult": draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)),
        "channel_mult_noise": draw(st.sampled_from([None, 1, 3])),
        "channel_mult_emb": draw(st.sampled_from([None, 1, 4])),
        "num_blocks": draw(st.integers(0, 2 if levels < 3 else 1)),
        "attn_resolutions": draw(st.lists(st.sampled_from([3, 4, 6, 8, 12]), max_size=3)),
        "label_balance": draw(st.sampled_from([0.5, 0, 0.2, 0.9, 1])),
        "concat_balance": draw(st.sampled_from([0.5, 0.3, 0.8])),
        "resample_filter": draw(st.sampled_from([[1, 1], [1, 3, 3, 1], [1, 2, 0.5, 4], [1, 2, 3, 3, 2, 1]])),
        "channels_per_head": draw(st.sampled_from([64, 4, 8])),
        "dropout": draw(st.sampled_from([0, 0.1])),
        "res_balance": draw(st.sampled_from([0.3, 0.2, 0.5])),
        "attn_balance": draw(st.sampled_from([0.3, 0.1, 0.5])),
        "clip_act": draw(st.sampled_from([256, None, 1.5])),
    }
    for name in list(kwargs)[3:]:  # now and then an option is left to its default
        if name != "model_channels" and draw(st.integers(0, 9)) == 0:
            del kwargs[name]
    try:
        EDM2Config(**kwargs)
    except ConfigError:
        kwargs["channels_per_head"] = 1
        kwargs["channel_mult"] = kwargs.get("channel_mult", [1])[:1]
        kwargs["attn_resolutions"] = []
    return kwargs


def network(kwargs, seed=0):
    """A torch_ref network with random weights and gains, in evaluation mode."""
    return randomize(Precond(**kwargs), seed).eval().requires_grad_(False)


def inputs(kwargs, batch, seed, labelled=True):
    """x [N, C, H, W] at the scale of its noise, sigma [N] from 0.002 to 80, and labels [N, label_dim] or None."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.uniform(np.log(SIGMA_MIN), np.log(SIGMA_MAX), batch))
    sigma[:2] = [SIGMA_MIN, SIGMA_MAX][:batch]
    shape = batch, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"]
    x = rng.standard_normal(shape) * np.sqrt(sigma**2 + 0.25)[:, None, None, None]
    labels = None
    if labelled and kwargs["label_dim"]:
        labels = np.eye(kwargs["label_dim"], dtype=np.float32)[rng.integers(kwargs["label_dim"], size=batch)]
    return x.astype(np.float32), sigma.astype(np.float32), labels


def evaluate(net, x, sigma, labels, dtype=torch.float64):
    """(D, logvar) of a torch_ref network raised to `dtype`, as numpy arrays."""
    arguments = [None if value is None else torch.from_numpy(value) for value in (x, sigma, labels)]
    with torch.no_grad():
        outputs = copy.deepcopy(net).to(dtype)(*arguments, return_logvar=True)
    return [output.numpy() for output in outputs]


def relative_error(x, truth):
    """|x - truth| / |truth| over all elements, in float64."""
    x, truth = (np.asarray(value, np.float64) for value in (x, truth))
    return float(np.linalg.norm(x - truth) / np.linalg.norm(truth))
