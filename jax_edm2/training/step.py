"""One step of training, as a pure function of a state, a batch and a key."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_edm2.ema import power_function_exponent, update_average
from jax_edm2.inputs import check_trainable
from jax_edm2.network import Precond
from jax_edm2.record import Record, Training
from jax_edm2.shapes import Images, Labels
from jax_edm2.training.loss import denoising_loss, project_to_sphere, sigma_of
from jax_edm2.training.recipe import Recipe
from jax_edm2.training_state import TrainingState

# Parts that a CPU computes without a loop: in one, XLA there has no fast convolutions for derivatives (jaxlib 0.10:
# twenty times slower). Every part takes as long to compile as the whole.
UNROLLED = 8


@partial(jax.tree_util.register_dataclass, data_fields=["variables", "optimizer", "averages", "images"], meta_fields=[])
@dataclass(frozen=True)
class State:
    """A pytree. variables: as the last step left them, not normalised, in float32; optimizer: optax's state of their
    "params"; averages: by relative standard deviation, trees like variables; images: that were seen, a uint32."""

    variables: Any
    optimizer: Any
    averages: Mapping[float, Any]
    images: jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["levels", "noise", "dropout"], meta_fields=[])
@dataclass(frozen=True)
class Draws:
    """What chance decides of a step. levels [N] and noise [N, C, H, W]: standard normal, in float32, of which come
    ln(sigma) = P_mean + P_std levels and what is added, sigma noise. dropout: a key, or None without dropout."""

    levels: jax.Array
    noise: Images
    dropout: jax.Array | None = None


def draw(key: jax.Array, shape: tuple[int, ...]) -> Draws:
    """What `train_step` draws for images of this shape, by its key."""
    for_sigma, for_noise, for_dropout = jax.random.split(key, 3)
    return Draws(
        jax.random.normal(for_sigma, shape[:1], jnp.float32),
        jax.random.normal(for_noise, shape, jnp.float32),
        for_dropout,
    )


def begin(variables: Any, optimizer: optax.GradientTransformation, recipe: Recipe) -> State:
    """The state before the first step, for variables as `load` or `net.init` gives them.

    Raises: ValueError for parameters in half precision, and stds as `power_function_exponent`.
    """
    check_trainable(variables["params"])
    for std in recipe.stds:
        power_function_exponent(std)
    averages = {std: jax.tree_util.tree_map(jnp.copy, variables) for std in recipe.stds}
    return State(variables, optimizer.init(variables["params"]), averages, jnp.uint32(0))


def resume(stored: TrainingState, optimizer: optax.GradientTransformation) -> State:
    """The state that `load_training_state` read, NVlabs' or our own; Adam's moments go where the optimiser has them.

    Raises: ValueError for an optimiser that has not one Adam in it.
    """
    assert stored.record.training is not None
    put = partial(jax.tree_util.tree_map, jnp.asarray)
    moments = optax.ScaleByAdamState(jnp.int32(stored.record.training.steps), put(stored.mu), put(stored.nu))
    state = optimizer.init(stored.variables["params"])
    count = 0

    def place(leaf: Any) -> Any:
        nonlocal count
        if not isinstance(leaf, optax.ScaleByAdamState):
            return leaf
        count += 1
        return moments

    state = jax.tree_util.tree_map(place, state, is_leaf=_is_adam)
    if count != 1:
        raise ValueError(f"Adam's moments go to one place, and the optimiser has {count} optax.scale_by_adam")
    averages = {std: put(tree) for std, tree in stored.averages.items()}
    return State(put(stored.variables), state, averages, jnp.uint32(stored.record.training.images))


def to_training_state(state: State, record: Record, recipe: Recipe, *, seconds: float = 0.0) -> TrainingState:
    """What `save_training_state` writes, from which `edm2-convert` makes a .pt for NVlabs' train_edm2.py.

    record: of the network that training began with. seconds: that it has taken. Raises: ValueError as `resume`.
    """
    adam = adam_of(state)
    images, steps = int(state.images), int(adam.count)
    rate = recipe.rate(max(images - recipe.batch_size, 0))
    stds = tuple(float(std) for std in state.averages)
    training = Training(images, steps, seconds, rate, recipe.betas, recipe.eps, stds)
    return TrainingState(
        state.variables, adam.mu, adam.nu, state.averages, dataclasses.replace(record, training=training)
    )


def _unrolled(add: Any, total: Any, each: Any) -> tuple[Any, jax.Array]:
    """What `jax.lax.scan` gives, without a loop, one part after the other."""
    found = []
    for number in range(len(each[0])):
        part, total = jax.lax.optimization_barrier((jax.tree_util.tree_map(lambda x, i=number: x[i], each), total))
        total, losses = add(total, part)
        found.append(losses)
    return total, jnp.stack(found)


def adam_of(state: State) -> optax.ScaleByAdamState:
    """Its count, mu and nu. Raises: ValueError for an optimiser that has not one Adam in it."""
    found = [leaf for leaf in jax.tree_util.tree_leaves(state.optimizer, is_leaf=_is_adam) if _is_adam(leaf)]
    if len(found) != 1:
        raise ValueError(f"a training state has one Adam, and the optimiser has {len(found)} optax.scale_by_adam")
    return found[0]


def _is_adam(leaf: Any) -> bool:
    return isinstance(leaf, optax.ScaleByAdamState)


@partial(jax.jit, static_argnames=("net", "optimizer", "recipe", "parts"))
def train_step(
    net: Precond,
    optimizer: optax.GradientTransformationExtraArgs,
    recipe: Recipe,
    state: State,
    images: Images,
    labels: Labels | None,
    key: jax.Array | Draws,
    *,
    parts: int = 1,
) -> tuple[State, dict[str, jax.Array]]:
    """The state after a step, and what it showed.

    images [N, C, H, W], N the recipe's batch_size, of standard deviation sigma_data; labels [N, label_dim] or None, on
    the host, a device or, split by images, a mesh. key: of this step alone;
    jax.random.fold_in(key, state.images) gives one that does not depend on when training was stopped. Or `Draws` of
    one's own. parts: N / parts images are computed with at once and gradients are added up, which changes nothing but
    roundings: sigma and noise are drawn for all of them, whatever the parts or devices.

    NVlabs' order: weights are normalised (Eq. 66), the gradient of the summed loss, times loss_scaling / N, is taken
    there, what is not finite of it becomes 0, Adam takes its step, and the averages take the raw weights (Eq. 127).

    Shows: loss (mean of all elements), gradient_norm, rate; sigma [N] and losses [N], for a picture by noise level.
    Raises: ValueError if N is another number or does not divide into parts, and as `denoising_loss`.
    """
    count = images.shape[0]
    if count != recipe.batch_size:
        raise ValueError(f"{count} images are not the {recipe.batch_size} of the recipe's batch_size")
    if parts < 1 or count % parts:
        raise ValueError(f"{count} images do not divide into {parts} parts")
    variables = project_to_sphere(state.variables)
    draws = key if isinstance(key, Draws) else draw(key, images.shape)
    sigma = sigma_of(draws.levels, recipe.P_mean, recipe.P_std)
    dropouts = None if draws.dropout is None else jax.random.split(draws.dropout, parts)

    def summed(params, images, sigma, noise, labels, dropout):
        rngs = {} if dropout is None else {"dropout": dropout}
        loss = denoising_loss(net, {**variables, "params": params}, images, sigma, noise, labels, train=True, rngs=rngs)
        return loss.sum() * (recipe.loss_scaling / count), loss.mean(axis=(1, 2, 3))

    differentiate = jax.grad(summed, has_aux=True)
    if parts == 1:
        first = None if dropouts is None else dropouts[0]
        gradient, losses = differentiate(variables["params"], images, sigma, draws.noise, labels, first)
    else:
        # Of neighbours each goes to another part, so that a part has images of every device of a mesh.
        each = jax.tree_util.tree_map(
            lambda x: x.reshape(count // parts, parts, *x.shape[1:]).swapaxes(0, 1),
            (images, sigma, draws.noise, labels),
        )

        def add(total, part):
            gradient, losses = differentiate(variables["params"], *part)
            return jax.tree_util.tree_map(jnp.add, total, gradient), losses

        nothing = jax.tree_util.tree_map(jnp.zeros_like, variables["params"])
        scan = partial(jax.lax.scan, add)
        if parts <= UNROLLED:
            scan = partial(jax.lax.platform_dependent, cpu=partial(_unrolled, add), default=scan)
        gradient, losses = scan(nothing, (*each, dropouts))
        losses = losses.swapaxes(0, 1).reshape(count)

    before = state.images.astype(jnp.float32)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, variables["params"], images=before)
    variables = {**variables, "params": optax.apply_updates(variables["params"], updates)}
    seen = state.images + jnp.uint32(count)
    averages = {
        std: update_average(
            average, variables, images_seen=seen.astype(jnp.float32), batch_size=jnp.float32(count), std=std
        )
        for std, average in state.averages.items()
    }
    shown = {"loss": losses.mean(), "gradient_norm": optax.tree.norm(gradient), "rate": recipe.rate(before)}
    return State(variables, optimizer_state, averages, seen), {**shown, "sigma": sigma, "losses": losses}
