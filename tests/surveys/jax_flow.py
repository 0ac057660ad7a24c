"""`make jax-flow`: kvfrans/jax-flow's own trainer with a converted network in the place of its transformer.

    python -m tests.surveys.jax_flow --jax-flow DIR

Its FlowTrainer is taken out of train_flow.py (which wants wandb and TensorFlow) and run as it stands: its inputs and
targets beside `jax_edm2.flow.interpolate`, its call_model, with classifier-free guidance, beside velocities of ours,
its loop of Euler steps beside `jax_edm2.heun`, and its training for a few steps.
"""

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

import jax_edm2
from jax_edm2.converter.processes import ROOT
from tests.support.networks import relative_error

CLASSES = 10
BOUND = 1e-5


class FlowModel:
    """A converted network with the call signature of jax-flow's DiT: channels last, class numbers, CLASSES for none."""

    def __init__(self, net: jax_edm2.Precond, constants: Any):
        self.net, self.constants = net, constants

    def apply(self, variables, images, t, labels, train=False, force_drop_ids=None, rngs=None, method=None):
        variables = {**variables, "constants": self.constants}
        denoise = jax_edm2.denoiser(self.net, variables, jax.nn.one_hot(labels, CLASSES))
        v = jax_edm2.flow.velocity(denoise)(images.transpose(0, 3, 1, 2), t)
        return v.transpose(0, 2, 3, 1)


def theirs(folder: Path) -> SimpleNamespace:
    """get_x_t, get_v, FlowTrainer and TrainState."""
    jax.tree_map = jax.tree.map  # as it was called then
    spec = importlib.util.spec_from_file_location("train_state", folder / "utils" / "train_state.py")
    assert spec
    assert spec.loader
    states = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(states)
    text = (folder / "train_flow.py").read_text()
    definitions = text[text.index("def get_x_t(") : text.index("# Training Code.")]
    names = {"jax": jax, "jnp": jnp, "flax": flax, "optax": optax, "partial": partial, "Any": Any}
    names |= {"TrainState": states.TrainState, "target_update": states.target_update}
    exec(definitions, names)
    return SimpleNamespace(**{name: names[name] for name in ("get_x_t", "get_v", "FlowTrainer", "TrainState")})


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.jax_flow", description=__doc__.splitlines()[0])
    parser.add_argument("--jax-flow", type=Path, required=True, metavar="DIR", help="a clone of kvfrans/jax-flow")
    project = theirs(parser.parse_args(argv).jax_flow)

    model = jax_edm2.from_pretrained(ROOT / "golden" / "digits.pkl")
    net = model.net
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model.variables)
    classes = jnp.arange(8)
    noise = jax.random.normal(jax.random.key(0), (8, 1, 8, 8))
    last = partial(jnp.moveaxis, source=1, destination=-1)
    images = jax_edm2.sample(net, variables, noise, jax.nn.one_hot(classes, CLASSES))
    errors = {}

    t = jnp.linspace(0, 0.99, 8)
    at, target = jax_edm2.flow.interpolate(noise, images, t)
    column = t[:, None, None, None]
    errors["get_x_t"] = relative_error(last(at), project.get_x_t(last(images), last(noise), column))
    errors["get_v"] = relative_error(last(target), project.get_v(last(images), last(noise)))

    definition = FlowModel(net, variables["constants"])
    state = project.TrainState.create(definition, variables["params"], tx=optax.adam(1e-4))
    config = flax.core.freeze({
        "t_sampler": "log-normal", "t_conditioning": 1, "num_classes": CLASSES, "target_update_rate": 0.999,
    })  # fmt: skip
    trainer = project.FlowTrainer(jax.random.key(1), state, state, config)

    labels = jax.nn.one_hot(classes, CLASSES)
    for weight in (1.0, 4.0):
        denoise = jax_edm2.denoiser(net, variables, labels, guidance=weight, unconditional=weight != 1)
        found = trainer.call_model(last(at), t, classes, cfg=weight != 1, cfg_val=weight)
        errors[f"call_model, guidance {weight:g}"] = relative_error(last(jax_edm2.flow.velocity(denoise)(at, t)), found)

    x, steps = last(noise), 200
    for step in range(steps):
        x = x + trainer.call_model(x, jnp.full(8, step / steps), classes, cfg=False) * (1 / steps)
    distance = float(jnp.sqrt(jnp.mean(jnp.square(x - last(images)))))

    replicated = flax.jax_utils.replicate(trainer, devices=jax.local_devices()[:1])
    losses = []
    for _ in range(20):
        replicated, shown = replicated.update(last(images)[None], classes[None])
        losses.append(float(shown["l2_loss"][0]))

    for name, error in errors.items():
        print(f"{name:28} {error:.1e} from ours")
    print(f"{steps} Euler steps: {distance:.4f} (root mean square) from jax_edm2.heun of 32")
    print(f"its training, 20 steps: loss {losses[0]:.3f} to {sum(losses[-5:]) / 5:.3f}")
    return 0 if max(errors.values()) < BOUND and distance < 0.03 and sum(losses[-5:]) < sum(losses[:5]) else 1


if __name__ == "__main__":
    sys.exit(main())
