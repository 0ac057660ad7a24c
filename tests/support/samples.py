"""Every option of the samplers, and what PyTorch and JAX draw with it from the digits network."""

import numpy as np
import torch

from jax_edm2.golden.digits import one_hot
from jax_edm2.sampling import sample
from jax_edm2.settings import Churn, Settings
from jax_edm2.torch_ref import sampling as reference

OPTIONS = {
    "heun": Settings(),
    "euler": Settings(sampler="euler"),
    "dpmpp-2m": Settings(sampler="dpmpp-2m", num_steps=16),
    "other schedule": Settings(num_steps=9, sigma_min=0.01, sigma_max=30.0, rho=5.0),
    "one step": Settings(num_steps=1),
    "guidance 1.5": Settings(guidance=1.5),
    "guidance 2": Settings(guidance=2.0),
    "guidance 0.3": Settings(guidance=0.3, num_steps=12),
    "the guide alone": Settings(guidance=0.0, num_steps=12),
    "interval": Settings(guidance=2.0, interval=(0.28, 2.9)),
    "churn": Settings(churn=Churn(S_churn=40.0, S_min=0.05, S_max=50.0, S_noise=1.003)),
    "churn everywhere": Settings(churn=Churn(S_churn=8.0), num_steps=12, guidance=1.5),
    "euler with churn": Settings(sampler="euler", churn=Churn(S_churn=10.0), num_steps=12),
    "dpmpp-2m-sde": Settings(sampler="dpmpp-2m-sde", num_steps=16),
    "ancestral": Settings(sampler="ancestral", num_steps=16),
    "rk4": Settings(sampler="rk4", num_steps=8),
    "dpmpp-2m guided": Settings(sampler="dpmpp-2m", num_steps=12, guidance=2.0, interval=(0.1, 5.0)),
}


def with_torch(net, guide, draw, settings):
    """Samples of torch_ref's loops in float32."""
    labels = None if draw.classes is None else one_hot(draw.classes)
    denoise = reference.guided(
        lambda x, sigma: net(x, sigma, labels),
        lambda x, sigma: guide(x, sigma, labels),
        settings.guidance,
        settings.interval,
    )
    sigmas = reference.noise_levels(settings.num_steps, settings.sigma_min, settings.sigma_max, settings.rho)
    noises = iter(() if draw.churn_noise is None else torch.from_numpy(draw.churn_noise))
    noise = torch.from_numpy(draw.noise)
    random = {"randn_like": lambda _x: next(noises)}
    options: dict = random if settings.churn_draws else {}
    if settings.sampler in ("heun", "euler"):
        options = {**vars(settings.churn), **random}
    method = getattr(reference, settings.sampler.replace("-", "_"))
    result = method(denoise, noise, sigmas, **options).numpy()
    assert next(noises, None) is None  # all draws were used
    return result


def with_jax(network, guide, draw, settings):
    labels = None if draw.classes is None else np.eye(10, dtype=np.float32)[draw.classes]
    return np.asarray(
        sample(*network, draw.noise, labels, guide=guide, churn_noise=draw.churn_noise, settings=settings)
    )
