"""A step of training beside PyTorch's: schedule, gradients that are not finite, Adam, averages, files, devices."""

import dataclasses
import json
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_edm2
from jax_edm2.ops import normalize
from jax_edm2.torch_ref.training import PowerFunctionEMA
from jax_edm2.torch_ref.training import learning_rate as rate_in_torch
from jax_edm2.training import (
    Recipe,
    begin,
    draw_noise_levels,
    make_optimizer,
    on_the_sphere,
    recipe_for,
    resume,
    to_training_state,
    train_step,
)
from tests.jax_edm2.test_parity import jax_variables
from tests.support.networks import network, relative_error
from tests.support.states import TINY
from tests.surveys.readme import TEXT

BATCH = 8
RECIPE = Recipe(batch_size=BATCH, decay_batches=2, rampup_images=3 * BATCH, stds=(0.05, 0.1), loss_scaling=3.0)
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax wants it
        yield


def data(step):
    random = np.random.default_rng(step)
    images = random.standard_normal((BATCH, 3, 8, 8), np.float32) / 2
    return images, np.eye(4, dtype=np.float32)[random.integers(0, 4, BATCH)]


def key_of(step):
    return jax.random.fold_in(jax.random.key(7), step)


@pytest.fixture(scope="module")
def trained():
    """The state after every step, and what each showed."""
    net = jax_edm2.Precond(jax_edm2.EDM2Config(**TINY))
    optimizer = make_optimizer(RECIPE)
    state = begin(jax_variables(network(TINY, 3)), optimizer, RECIPE)
    states, shown = [state], []
    for step in range(STEPS):
        state, seen = train_step(net, optimizer, RECIPE, state, *data(step), key_of(step))
        states.append(state)
        shown.append(seen)
    return net, optimizer, states, shown


def in_torch(dtype):
    """NVlabs' loop with the draws of the other one: raw weights, and their averages."""
    net = network(TINY, 3).to(dtype).train().requires_grad_(True)
    adam = torch.optim.Adam(net.parameters(), lr=1.0, betas=RECIPE.betas, eps=RECIPE.eps)
    ema = PowerFunctionEMA(net, stds=RECIPE.stds)
    losses = []
    for step in range(STEPS):
        images, labels = (torch.as_tensor(value, dtype=dtype) for value in data(step))
        for_sigma, for_noise, _ = jax.random.split(key_of(step), 3)
        sigma = torch.as_tensor(np.array(draw_noise_levels(for_sigma, BATCH, RECIPE.P_mean, RECIPE.P_std)), dtype=dtype)
        noise = torch.as_tensor(np.array(jax.random.normal(for_noise, images.shape)), dtype=dtype)
        sigma = sigma.reshape(-1, 1, 1, 1)
        denoised, logvar = net(images + sigma * noise, sigma, labels, return_logvar=True, dtype=dtype)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        loss = weight / logvar.exp() * (denoised - images) ** 2 + logvar
        adam.zero_grad(set_to_none=True)
        (loss.sum() * RECIPE.loss_scaling / BATCH).backward()
        adam.param_groups[0]["lr"] = rate_in_torch(
            step * BATCH, BATCH, RECIPE.learning_rate, RECIPE.decay_batches, RECIPE.rampup_images
        )
        adam.step()
        ema.update((step + 1) * BATCH, BATCH)
        losses.append(float(loss.detach().mean()))
    return [jax_variables(each.requires_grad_(False)) for each in (net, *ema.nets)], losses


def apart(found, truth):
    truth = flatten_dict(truth)
    return max(
        relative_error(np.asarray(value, np.float64), np.asarray(truth[path], np.float64))
        for path, value in flatten_dict(found).items()
    )


def test_six_steps_are_nvlabs(trained):
    _, _, states, shown = trained
    truth, losses = in_torch(torch.float64)
    own, _ = in_torch(torch.float32)
    found = [states[-1].variables, *(states[-1].averages[std] for std in RECIPE.stds)]
    for mine, theirs, exact in zip(found, own, truth, strict=True):
        assert apart(mine, exact) < max(7e-7, 4 * apart(theirs, exact))  # measured: 2.2e-7, and PyTorch 1.3e-7
    assert [float(each["loss"]) for each in shown] == pytest.approx(losses, rel=5e-7)  # measured: 1.4e-7
    assert int(states[-1].images) == STEPS * BATCH


def test_the_schedule(trained):
    _, _, _, shown = trained
    rates = [rate_in_torch(step * BATCH, BATCH, 1e-2, 2, 3 * BATCH) for step in range(STEPS)]
    assert rates[0] == 0
    assert [float(each["rate"]) for each in shown] == pytest.approx(rates, rel=1e-6)
    for recipe in (RECIPE, recipe_for("edm2-img64-l"), Recipe(decay_batches=0), Recipe(rampup_images=0)):
        for images in (0, 1, 2048, 9_999_999, 143_360_000, 2**31 + 2048):
            exact = rate_in_torch(
                images, recipe.batch_size, recipe.learning_rate, recipe.decay_batches, recipe.rampup_images
            )
            assert recipe.rate(images) == exact
            assert float(recipe.rate(jnp.float32(images))) == pytest.approx(exact, rel=3e-7)


def test_sigma_of_a_recipe():
    drawn = np.log(draw_noise_levels(jax.random.key(0), 20000, -0.8, 1.6))
    assert drawn.mean() == pytest.approx(-0.8, abs=0.05)
    assert drawn.std() == pytest.approx(1.6, abs=0.05)


def test_parts_change_nothing_but_rounding(trained, monkeypatch):
    net, optimizer, states, shown = trained
    for parts in (2, 4):
        monkeypatch.setattr("jax_edm2.training.step.UNROLLED", 2)  # the others in a loop
        state, seen = train_step(net, optimizer, RECIPE, states[3], *data(3), key_of(3), parts=parts)
        assert apart(state.variables, states[4].variables) < 1e-7  # measured: 1.1e-8
        assert np.array_equal(seen["sigma"], shown[3]["sigma"])
        assert np.asarray(seen["losses"]) == pytest.approx(np.asarray(shown[3]["losses"]), rel=1e-5)
    with pytest.raises(ValueError, match="8 images are not the 2048 of the recipe's batch_size"):
        train_step(net, optimizer, Recipe(stds=[0.05, 0.1]), states[3], *data(3), key_of(3))
    with pytest.raises(ValueError, match="8 images do not divide into 3 parts"):
        train_step(net, optimizer, RECIPE, states[3], *data(3), key_of(3), parts=3)


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("fsdp", [False, True])
def test_devices_change_nothing_but_rounding(trained, fsdp, axis):
    net, optimizer, states, shown = trained
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis,))

    def place(leaf):
        axes = ["data" if fsdp and leaf.ndim and leaf.shape[0] % 2 == 0 else None] + [None] * (leaf.ndim - 1)
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes[: leaf.ndim])))

    batch = jax.device_put(data(3), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        placed = jax.tree.map(place, states[3])
        state, seen = train_step(net, optimizer, RECIPE, placed, *batch, key_of(3), parts=1 + fsdp)
    assert apart(state.variables, states[4].variables) < 2e-6
    assert float(seen["loss"]) == pytest.approx(float(shown[3]["loss"]), rel=1e-5)


def test_what_is_not_finite_becomes_nothing(trained):
    """One value, not the others: Adam's moments of it are those of a gradient of 0."""
    _, optimizer, states, _ = trained
    params = states[0].variables["params"]
    gradient = jax.tree.map(jnp.ones_like, params)
    bad = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(jnp.nan) if g.size > 1 else g * jnp.inf, gradient)
    clean = jax.tree.map(lambda g: g.at[(0,) * g.ndim].set(0) if g.size > 1 else g * 0, gradient)
    update = jax.jit(optimizer.update)
    found = update(bad, states[0].optimizer, params, images=jnp.float32(BATCH))
    wanted = update(clean, states[0].optimizer, params, images=jnp.float32(BATCH))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_on_the_sphere(trained):
    """Always normalised, as `project_to_sphere` would: to rounding, as updates are what optax adds."""
    _, _, states, _ = trained
    params = jax_edm2.project_to_sphere(states[0].variables)["params"]
    transform = optax.chain(optax.scale(0.1), on_the_sphere())
    gradient = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    updates, _ = transform.update(gradient, transform.init(params), params)
    moved = jax.tree.map(lambda p, g: p + 0.1 * g, params, gradient)
    wanted = jax_edm2.project_to_sphere({"params": moved})["params"]
    assert apart(optax.apply_updates(params, updates), wanted) < 5e-7
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update(gradient, transform.init(params))
    assert make_optimizer(RECIPE, keep_on_the_sphere=True).init(params) is not None
    assert normalize(wanted["unet"]["out_conv"]["mpconv_weight"]).shape


def test_saved_and_resumed_it_is_the_same(trained, tmp_path):
    """Bit for bit: a state that went through a file goes on as if it had not."""
    net, optimizer, states, _ = trained
    record = jax_edm2.save(tmp_path / "x.safetensors", net, states[0].variables)
    stored = to_training_state(states[3], record, RECIPE, seconds=4.5)
    jax_edm2.save_training_state(tmp_path / "state", stored)
    loaded = jax_edm2.load_training_state(tmp_path / "state")
    assert loaded.record.training.steps == 3
    assert loaded.record.training.learning_rate == rate_in_torch(2 * BATCH, BATCH, 1e-2, 2, 3 * BATCH)
    state = resume(loaded, optimizer)
    jax.tree.map(np.testing.assert_array_equal, state, states[3])
    for step in range(3, STEPS):
        state, _ = train_step(net, optimizer, RECIPE, state, *data(step), key_of(step))
    jax.tree.map(np.testing.assert_array_equal, state, states[-1])
    with pytest.raises(ValueError, match=r"has 0 optax\.scale_by_adam"):
        resume(loaded, optax.sgd(0.1))


def test_dropout_is_drawn_and_only_where_it_is(trained):
    _, optimizer, states, _ = trained
    net = jax_edm2.Precond(jax_edm2.EDM2Config(**TINY, dropout=0.5))
    one, _ = train_step(net, optimizer, RECIPE, states[2], *data(2), key_of(2))
    same, _ = train_step(net, optimizer, RECIPE, states[2], *data(2), key_of(2))
    assert apart(one.variables, states[3].variables) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, one, same)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "batch_size must be above 0, not 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, not nan"),
        ({"decay_batches": -1}, "decay_batches must not be below 0, and is -1"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers from 0 to below 1"),
        ({"batch_size": "8"}, "batch_size must be a finite number, not '8'"),
        ({"batch_size": 8.0}, "batch_size must be an integer, not 8.0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, not 1.0"),
        ({"beta": 1}, "a recipe has no 'beta', but P_mean, P_std"),
    ],
)
def test_what_is_no_recipe(changes, text):
    with pytest.raises(ValueError, match=text.replace("(", r"\(").replace(")", r"\)")):
        recipe_for("edm2-img512-s", **changes)
    with pytest.raises(ValueError, match="'edm2-s' is no preset of a training; known are edm2-img512-xxs,"):
        recipe_for("edm2-s")


def test_begin_refuses(trained):
    _, optimizer, states, _ = trained
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), states[0].variables)
    with pytest.raises(ValueError, match="float16"):
        begin(half, optimizer, RECIPE)
    with pytest.raises(ValueError, match="std must be from"):
        begin(states[0].variables, optimizer, dataclasses.replace(RECIPE, stds=(0.5,)))


def test_the_loop_of_the_documentation(trained, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n([^`]*training.train_step.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    net, _, states, _ = trained
    record = jax_edm2.save("x.safetensors", net, states[0].variables)
    code = code.replace("1000 *", "2 *").replace("batch_size=256", "batch_size=8")
    with zipfile.ZipFile("images.zip", "w") as archive:
        names = [f"{i}.npy" for i in range(12)]
        for i, name in enumerate(names):
            with archive.open(name, "w") as file:
                np.save(file, np.full((3, 8, 8), 20 * i, np.uint8))
        archive.writestr("dataset.json", json.dumps({"labels": [[name, i % 4] for i, name in enumerate(names)]}))
    exec(code, {"jax_edm2": jax_edm2, "net": net, "variables": states[0].variables, "record": record})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["8 images", "16 images"]
    state = jax_edm2.load_training_state("state")
    assert (state.record.training.steps, state.record.training.images) == (2, 16)
    jax_edm2.load("tuned.safetensors")


# What distillation needs: derivatives along the trajectory (sCM, MeanFlow, ECT)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forward_derivatives(trained, folded, dtype):
    """d/dt of D(x + t v, sigma + t): jvp beside the quotient of differences in float64, and its gradient is finite."""
    net, _, states, _ = trained
    x, labels = data(0)
    v = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    sigma = np.linspace(0.3, 3, BATCH, dtype=np.float32)
    net = net.clone(dtype=jnp.dtype(dtype))
    variables = states[3].variables
    ours, weights = jax_edm2.fold(net, variables) if folded else (net, variables)

    def along(weights):
        return jax.jvp(lambda x, s: ours.apply(weights, x, s, labels), (x, sigma), (v, np.ones_like(sigma)))[1]

    found = np.asarray(jax.jit(along)(weights), np.float64)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        exact_net = net.clone(dtype=jnp.float64)
        at = [
            exact_net.apply(wide, x.astype(np.float64) + h * v, sigma.astype(np.float64) + h, labels.astype(np.float64))
            for h in (1e-5, -1e-5)
        ]
        exact = (np.asarray(at[0]) - np.asarray(at[1])) / 2e-5
    assert relative_error(found, exact) < {"float32": 5e-6, "bfloat16": 5e-2}[dtype]
    gradient = jax.jit(jax.grad(lambda weights: jnp.square(along(weights)).mean()))(weights)
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(gradient["params"]))
