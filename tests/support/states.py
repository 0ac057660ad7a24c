"""Training states as NVlabs' code saves them: made by torch, of our own network."""

import numpy as np
import torch

from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import EasyDict, container_modules, randomize
from jax_edm2.torch_ref.training import EDM2Loss, PowerFunctionEMA

TINY = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 4, "model_channels": 8, "channel_mult": [1, 2],
    "num_blocks": 0, "attn_resolutions": [4], "channels_per_head": 8, "logvar_channels": 16,
}  # fmt: skip
BATCH = 1024


class Trained:
    """A network in training, with Adam and averages."""

    def __init__(self, kwargs=TINY, seed=0, stds=(0.05, 0.1)):
        torch.manual_seed(seed)
        self.net = randomize(Precond(**kwargs), seed).train()
        self.adam = torch.optim.Adam(self.net.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
        self.ema, self.loss = PowerFunctionEMA(self.net, stds), EDM2Loss(P_mean=-0.8, P_std=1.6, sigma_data=0.5)
        self.images, self.seconds = 0, 0.0

    def steps(self, count, seed=0):
        """Adam's steps with gradients that are random: what is saved does not depend on where they come from."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for parameter in self.net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.adam.param_groups[0]["lr"] = np.float64(0.01)  # a number of numpy's, as NVlabs' schedule gives
            self.adam.step()
            self.images, self.seconds = self.images + BATCH, self.seconds + 1.5
            self.ema.update(self.images, BATCH)
        return self

    def content(self):
        """What NVlabs' CheckpointIO puts into the file."""
        return {
            "state": EasyDict(cur_nimg=self.images, total_elapsed_time=self.seconds),
            "net": self.net.state_dict(),
            "loss_fn": {**vars(self.loss), "_init_args": (), "_init_kwargs": EasyDict(P_mean=-0.8, P_std=1.6)},
            "optimizer": self.adam.state_dict(),
            "ema": {"stds": list(self.ema.stds), "emas": [ema.state_dict() for ema in self.ema.nets]},
        }

    def save(self, path, **changes):
        save({**self.content(), **changes}, path)
        return path

    def load(self, path):
        """As NVlabs' CheckpointIO does, where torch lets it."""
        content = load(path)
        self.images, self.seconds = content["state"]["cur_nimg"], content["state"]["total_elapsed_time"]
        self.net.load_state_dict(content["net"])
        self.adam.load_state_dict(content["optimizer"])
        for ema, state in zip(self.ema.nets, content["ema"]["emas"], strict=True):
            ema.load_state_dict(state)
        return self


def save(content, path):
    with container_modules():
        torch.save(content, path)


def load(path):
    with container_modules():
        return torch.load(path, weights_only=False)


def flat(value, name=""):
    """All that is in nested containers, by name; tensors as arrays."""
    if isinstance(value, torch.Tensor):
        return {name: np.asarray(value.detach())}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for k, below in items for key, leaf in flat(below, f"{name}.{k}").items()}
    return {name: value}


def assert_same(a, b):
    found, expected = flat(a), flat(b)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
