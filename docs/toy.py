"""Autoguidance's toy in two dimensions (Section 3 of arXiv 2406.02507), with the samplers and guidance of this library.

    python docs/toy.py toy.png

Two classes, each a tree of Gaussians. A network learns one of them, and draws points beside its branches. Three ways to
get rid of those, all of them `guided`: by a network that knows no classes (classifier-free guidance), by nothing at all
(longer scores, which is naive truncation), and by a smaller network that was trained for less long (autoguidance).
"""

import argparse
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import logsumexp, softmax
from matplotlib.figure import Figure

from jax_edm2 import guided, heun, noise_levels, project_to_sphere, update_average
from jax_edm2.ops import effective_weight, mp_silu
from jax_edm2.training import Recipe, draw_noise_levels, make_optimizer

SIGMA_DATA = 0.5
SIGMAS = noise_levels(num_steps=32, sigma_max=5.0)
RECIPE = Recipe(
    batch_size=1024, learning_rate=1e-2, decay_batches=512, rampup_images=0, P_mean=-2.3, P_std=1.5, stds=(0.01,)
)


class Mixture(NamedTuple):
    """A mixture of K Gaussians in the plane, whose denoiser has a closed form."""

    share: Any  # [K], sums to 1
    mean: Any  # [K, 2]
    along: Any  # unit vectors [K, 2], the long axis of each
    deviation: Any  # standard deviations [K, 2] on that axis and across it
    branch: Any  # which branch of its tree each belongs to, integers [K]

    @property
    def across(self):
        return jnp.stack([-self.along[:, 1], self.along[:, 0]], axis=1)

    def parts(self, x, sigma):
        """Of points x [N, 2] with noise of sigma, one or [N], added: log densities of every Gaussian [N, K]; and x
        minus its mean, on both axes, over the variance there."""
        variance = jnp.square(self.deviation) + jnp.reshape(jnp.square(sigma), (-1, 1, 1))  # [N, K, 2]
        offset = jnp.stack([x @ axis.T - jnp.sum(self.mean * axis, 1) for axis in (self.along, self.across)], 2)
        exponent = jnp.log(self.share) - jnp.sum(jnp.square(offset) / variance, 2) / 2
        return exponent - jnp.sum(jnp.log(variance), 2) / 2 - math.log(2 * math.pi), offset / variance

    def log_density(self, x, sigma=0.0):
        """Of points [N, 2], with noise of sigma added to the mixture: [N]."""
        return logsumexp(self.parts(x, sigma)[0], axis=1)

    def denoise(self, x, sigma):
        """The mean [N, 2] of where points x [N, 2] were before noise of sigma, one or [N], was added."""
        logs, scaled = self.parts(x, sigma)
        weight = softmax(logs, axis=1)[:, :, None]
        toward = weight * jnp.square(self.deviation) * scaled
        return weight[:, :, 0] @ self.mean + toward[:, :, 0] @ self.along + toward[:, :, 1] @ self.across

    def draw(self, key, count):
        """Points [count, 2]."""
        which, where = jax.random.split(key)
        k = jax.random.choice(which, len(self.share), (count,), p=self.share)
        a, b = (jax.random.normal(where, (count, 2)) * self.deviation[k]).T[:, :, None]
        return self.mean[k] + a * self.along[k] + b * self.across[k]


def tree(rng, angle, levels=5, pieces=6):
    """A branch that forks, whose branches fork, and so on: a mixture of `pieces` Gaussians on each of 2^levels - 1."""
    start, angle, columns = np.zeros((1, 2)), np.array([angle]), []
    for level in range(levels):
        count = 2**level
        length = 0.8**level * (1 + 0.2 * rng.standard_normal(count))
        way = np.stack([np.cos(angle), np.sin(angle)], 1)
        end = start + way * length[:, None]
        for t in (np.arange(pieces) + 0.5) / pieces:
            deviation = np.stack([length * 0.5 / pieces, np.full(count, 0.045 * 0.8**level)], 1)
            share = length / 2**level
            columns.append((share, start + way * length[:, None] * t, way, deviation, np.arange(count) + count - 1))
        turn = 0.75**level * (1 + 0.2 * rng.standard_normal((2, count)))
        start, angle = np.concatenate([end, end]), np.concatenate([angle + turn[0], angle - turn[1]])
    share, mean, way, deviation, branch = map(np.concatenate, zip(*columns, strict=True))
    return Mixture(share / share.sum(), mean, way, deviation, branch)


def classes(seed=0):
    """The first class, and both together; centred, with the standard deviation that networks expect."""
    rng = np.random.default_rng(seed)
    one, other = tree(rng, np.pi / 4), tree(rng, -3 * np.pi / 4)
    both = Mixture(*map(np.concatenate, zip(one, other, strict=True)))
    both = both._replace(share=both.share / 2)
    middle = both.share @ both.mean
    scale = SIGMA_DATA / np.sqrt(both.share @ (np.square(both.mean - middle) + np.square(both.deviation)).mean(1))

    def placed(mixture):
        moved = mixture._replace(mean=(mixture.mean - middle) * scale, deviation=mixture.deviation * scale)
        return Mixture(*(np.asarray(x, np.float32) for x in moved[:4]), moved.branch)

    return placed(one), placed(both)


def begin(key, width, layers=4):
    """Variables of a network: like EDM2's, weights on the sphere and a gain that begins at 0."""
    sizes = [4, *[width] * layers, 2]
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[1:], sizes[:-1], strict=True)
    weights = [{"mpconv_weight": jax.random.normal(key, (out, given))} for key, out, given in shapes]
    return {"layers": weights, "gain": jnp.zeros(())}


def denoise(variables, x, sigma):
    """D(x; sigma) [N, 2] of x [N, 2] and noise levels, one or [N] (preconditioned: Eq. 7 of arXiv 2206.00364)."""
    sigma = jnp.broadcast_to(jnp.reshape(sigma, (-1, 1)), (len(x), 1))
    total = jnp.sqrt(jnp.square(sigma) + SIGMA_DATA**2)
    y = jnp.concatenate([x / total, jnp.log(sigma) / 4, jnp.ones_like(sigma)], axis=1)
    for i, layer in enumerate(variables["layers"]):
        y = (mp_silu(y) if i else y) @ effective_weight(layer["mpconv_weight"]).T
    return x * jnp.square(SIGMA_DATA / total) + y * variables["gain"] * (sigma * SIGMA_DATA / total)


@partial(jax.jit, static_argnames=("width", "steps"))
def train(key, mixture, width, steps):
    """The average (EMA) of a network's variables after training on a mixture, and the loss of every step [steps]."""
    optimizer = make_optimizer(RECIPE)
    count = RECIPE.batch_size

    def loss_of(variables, x, sigma, clean):
        weight = (jnp.square(sigma) + SIGMA_DATA**2) / jnp.square(sigma * SIGMA_DATA)
        return jnp.mean(weight[:, None] * jnp.square(denoise(variables, x, sigma) - clean))

    def step(state, i):
        variables, average, adam = state
        variables = project_to_sphere(variables)
        levels, points, noise = jax.random.split(jax.random.fold_in(key, i), 3)
        sigma = draw_noise_levels(levels, count, RECIPE.P_mean, RECIPE.P_std)
        clean = mixture.draw(points, count)
        x = clean + sigma[:, None] * jax.random.normal(noise, (count, 2))
        loss, gradient = jax.value_and_grad(loss_of)(variables, x, sigma, clean)
        seen = i.astype(jnp.float32) * count
        updates, adam = optimizer.update(gradient, adam, variables, images=seen)
        variables = optax.apply_updates(variables, updates)
        average = update_average(
            average, variables, images_seen=seen + count, batch_size=jnp.float32(count), std=RECIPE.stds[0]
        )
        return (variables, average, adam), loss

    variables = begin(key, width)
    (_, average, _), losses = jax.lax.scan(step, (variables, variables, optimizer.init(variables)), jnp.arange(steps))
    return project_to_sphere(average), losses


def sample(denoise, noise):
    """Points [N, 2] of noise [N, 2]: to the samplers, each is an image of two channels and one pixel."""

    def denoise_image(x, sigma):
        return denoise(x[:, :, 0, 0], sigma)[:, :, None, None]

    return jax.jit(lambda noise: heun(denoise_image, noise, SIGMAS))(noise[:, :, None, None])[:, :, 0, 0]


def judge(points, truth, contour):
    """The share of points [N, 2] beyond a contour of the log density; and that of branches which got half their due."""
    inside = truth.log_density(points) > contour
    nearest = truth.branch[np.argmax(truth.parts(points, 0.0)[0], axis=1)]
    found = np.bincount(nearest, weights=inside, minlength=truth.branch.max() + 1) / len(points)
    return float(1 - inside.mean()), float(np.mean(found > np.bincount(truth.branch, weights=truth.share) / 2))


def draw(path, panels, one, both, contour):
    """Points by title, over the classes, as PNG. contour: the log density of either where it is drawn to end."""
    side = np.linspace(-0.7, 1.45, 250, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=2)
    shapes = [
        (jax.lax.map(jax.jit(mixture.log_density), grid), fill, line)
        for mixture, fill, line in ((both, "0.9", "0.7"), (one, "#ffe0c0", "#d0a080"))
    ]
    figure = Figure(figsize=(12, 8), dpi=80, layout="constrained")
    for axes, (title, points) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        for density, fill, line in shapes:
            axes.contourf(side, side, density, levels=[contour, np.inf], colors=[fill])
            axes.contour(side, side, density, levels=[contour], colors=[line], linestyles="solid", linewidths=0.5)
        axes.plot(*points.T, ".", color="black", markersize=2, markeredgewidth=0, alpha=0.5)
        axes.set(title=title, aspect="equal", xlim=side[[0, -1]], ylim=side[[0, -1]])
        axes.set_axis_off()
    figure.savefig(path, format="png")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python docs/toy.py", description="Draw the toy of autoguidance's paper.")
    parser.add_argument("picture", help="the PNG to write")
    parser.add_argument("--steps", type=int, default=16384, help="of the network's training; guides take a sixteenth")
    parser.add_argument("--points", type=int, default=8192, help="in every panel")
    args = parser.parse_args(argv)

    one, both = classes()
    keys = jax.random.split(jax.random.key(0), 5)

    def trained(key, mixture, width, steps):
        return partial(denoise, train(key, mixture, width, steps)[0])

    network = trained(keys[0], one, 96, args.steps)
    guide = trained(keys[1], one, 48, args.steps // 16)
    unconditional = trained(keys[2], both, 48, args.steps // 16)
    truth = one.draw(keys[3], args.points)
    noise = truth / SIGMAS[0] + jax.random.normal(keys[4], truth.shape)
    denoisers = {
        "no guidance": network,
        "the guide by itself": guide,
        "classifier-free guidance, w = 4": guided(network, unconditional, 4.0),
        "naive truncation, w = 1.2": guided(network, lambda x, sigma: x, 1.2),
        "autoguidance, w = 2": guided(network, guide, 2.0),
    }
    panels = {"ground truth": truth} | {title: sample(each, noise) for title, each in denoisers.items()}
    contour = float(np.quantile(one.log_density(truth), 0.01))  # 99 % are inside
    print("                                  outside  branches")
    for title, points in panels.items():
        outside, branches = judge(points, one, contour)
        print(f"{title:34}{outside:7.1%}{branches:10.1%}")
    draw(args.picture, panels, one, both, contour)


if __name__ == "__main__":
    main()
