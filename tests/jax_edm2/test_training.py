"""Training in JAX beside training in PyTorch, with the step that docs/library.md shows."""

import re

import jax
import torch
from flax.traverse_util import flatten_dict

import jax_edm2
from jax_edm2.torch_ref.training import EDM2Loss, PowerFunctionEMA
from tests.jax_edm2.test_parity import jax_variables
from tests.support.networks import network, relative_error
from tests.surveys.readme import TEXT

TINY = {
    "img_resolution": 4,
    "img_channels": 2,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 0,
}
STEPS, BATCH, STD = 20, 4, 0.1
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def in_pytorch():
    """Draws of every step, and raw weights and their average after the last: NVlabs' loop, in float32."""
    net = network(TINY).train().requires_grad_(True)
    adam = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    ema = PowerFunctionEMA(net, stds=[STD])
    draws = []
    for step in range(1, STEPS + 1):
        torch.manual_seed(step)
        images, labels = torch.randn(BATCH, 2, 4, 4) / 2, torch.eye(3)[torch.randint(3, [BATCH])]
        state = torch.get_rng_state()
        sigma = torch.exp(-0.8 + 1.6 * torch.randn(BATCH, 1, 1, 1))
        draws.append([value.numpy() for value in (images, labels, sigma.flatten(), torch.randn_like(images))])
        torch.set_rng_state(state)
        adam.zero_grad(set_to_none=True)
        (EDM2Loss(P_mean=-0.8, P_std=1.6)(net, images, labels).sum() / BATCH).backward()
        adam.step()
        ema.update(nimg=step * BATCH, batch_size=BATCH)
    return draws, *(jax_variables(each.requires_grad_(False)) for each in (net, *ema.nets))


def apart(variables, truth):
    truth = flatten_dict(truth)
    return max(relative_error(value, truth[path]) for path, value in flatten_dict(variables).items())


@jax.jit
def average_of_normalised(average, variables, images_seen):
    variables = jax_edm2.project_to_sphere(variables)
    return jax_edm2.update_average(average, variables, images_seen=images_seen, batch_size=BATCH, std=STD)


def test_the_readmes_step_is_nvlabs():
    """And another order, which averages weights that are normalised already, is not."""
    (code,) = re.findall(r"```python\n([^`]*def training_step.*?)```", TEXT, re.DOTALL)
    readme = {"jax": jax, "jax_edm2": jax_edm2, "net": jax_edm2.Precond(jax_edm2.EDM2Config(**TINY))}
    draws, raw, exact = in_pytorch()
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        exec(code, readme)
        variables = average = other = jax.tree.map(jax.numpy.asarray, jax_variables(network(TINY)))
        state = readme["adam"].init(variables["params"])
        lowered = readme["training_step"].lower(variables, average, state, *draws[0], BATCH)
        training_step = lowered.compile(QUICKLY)
        for step, draw in enumerate(draws, 1):
            variables, average, state = training_step(variables, average, state, *draw, BATCH * step)
            other = average_of_normalised(other, variables, BATCH * step)
    assert apart(variables, raw) <= 7.5e-7  # measured: 2.5e-7
    assert apart(average, exact) <= 6.6e-7  # measured: 2.2e-7
    assert apart(other, exact) > 1e-4  # measured: 4.7e-4
