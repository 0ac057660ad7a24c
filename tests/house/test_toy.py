"""The toy of docs/: its closed form is right, the sampler draws from it, its networks learn, and its command draws."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_edm2.converter.processes import ROOT

COUNT = 1024


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("toy", ROOT / "docs" / "toy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(toy):
    return toy.classes()[0]


def test_the_denoiser_follows_the_density(one):
    """D = x + sigma^2 times the gradient of the log density: Tweedie's formula."""
    x, sigma = one.draw(jax.random.key(0), 8) + 0.1, jnp.linspace(0.05, 1.0, 8)
    score = jax.jit(jax.grad(lambda x: one.log_density(x, sigma).sum()))(x)
    np.testing.assert_allclose(jax.jit(one.denoise)(x, sigma), x + jnp.square(sigma)[:, None] * score, atol=1e-5)


def test_heun_draws_from_the_exact_denoiser(toy, one):
    truth, noise = one.draw(jax.random.key(1), COUNT), jax.random.normal(jax.random.key(2), (COUNT, 2))
    points = toy.sample(one.denoise, truth / toy.SIGMAS[0] + noise)
    contour = float(np.quantile(one.log_density(truth), 0.01))
    for drawn in (truth, points):
        outside, branches = toy.judge(drawn, one, contour)
        assert outside < 0.02
        assert branches > 0.95
    np.testing.assert_allclose(points.mean(0), one.share @ one.mean, atol=0.05)


def test_training_lowers_the_loss(toy, one):
    with jax.numpy_dtype_promotion("standard"):  # optax wants it
        _, losses = toy.train(jax.random.key(3), one, width=16, steps=48)
    assert losses[-16:].mean() < 0.9 * losses[:16].mean()


def test_the_command_draws(toy, tmp_path, capsys, monkeypatch):
    """With networks that are not trained: three of them would take long to compile."""
    monkeypatch.setattr(toy, "train", lambda key, mixture, width, steps: (toy.begin(key, width), None))
    toy.main([str(tmp_path / "toy.png"), "--points=64"])
    with Image.open(tmp_path / "toy.png") as picture:
        assert picture.size == (960, 640)
    assert capsys.readouterr().out.count("%") == 12
