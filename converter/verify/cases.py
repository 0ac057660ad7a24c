"""Test inputs that are able to show a bug: every noise level, several labels and no label, noise of fixed seeds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from jax_edm2.config import EDM2Config
from jax_edm2.messages import brief

from .precision import PRECISIONS

SIGMAS = (0.002, 0.3, 3.0, 80.0)
CHECKS = ("parameters", "forward", "gradients", "derivative", "trajectory", "training", "throughput")
MOST_SEEDS, LARGEST_SEED = 10_000, 10**18 - 1
MOST_SIGMAS, LARGEST_SIGMA = 1000, 1e6
MOST_BATCH = 65536
FEWEST_STEPS, MOST_STEPS = 1, 10_000
FEWEST_UPDATES, MOST_UPDATES = 1, 1000

# Bytes of weights, in the precision in which they are computed with, that a process holds for as long as it runs: of M
# in float64, of L in float32. Those of a larger network are read again whenever a part of it needs them.
HELD = 4e9


class PlanError(ValueError):
    """A plan that asks for something that nobody can do. The message is a phrase: 'batch must be ...'."""


@dataclass(frozen=True)
class Plan:
    """What is run; the same for both frameworks, and recorded in the truth file."""

    checks: tuple[str, ...] = ("parameters", "forward", "gradients", "trajectory")
    seeds: tuple[int, ...] = (0,)
    sigmas: tuple[float, ...] = SIGMAS  # noise standard deviations, dealt to the images of a batch in turn
    batch: int = 4
    steps: int = 32  # of the trajectory
    updates: int = 4  # of the training
    precision: str = "float32"

    @classmethod
    def from_json(cls, fields: Any) -> Self:
        """From the fields as JSON has them, with lists for tuples. Raises: PlanError."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or set(fields) != set(names):
            raise PlanError(f"must have {', '.join(names)}, and nothing else")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        plan = cls(**values)
        plan.check()
        return plan

    def check(self):
        """Raises: PlanError."""
        if not _several(self.checks, len(CHECKS), lambda v: isinstance(v, str) and v in CHECKS):
            raise PlanError(f"checks must be different names of {', '.join(CHECKS)}, not {brief(self.checks)}")
        if not _several(self.seeds, MOST_SEEDS, lambda v: _whole(v, 0, LARGEST_SEED)):
            raise PlanError(f"seeds must be different numbers from 0, {MOST_SEEDS:,} at most, not {brief(self.seeds)}")
        if not _several(self.sigmas, MOST_SIGMAS, _is_sigma, different=False):
            raise PlanError(f"sigmas must be noise levels above 0, {MOST_SIGMAS:,} at most, not {brief(self.sigmas)}")
        if not _whole(self.batch, 1, MOST_BATCH):
            raise PlanError(f"batch must be a number from 1 to {MOST_BATCH:,}, not {brief(self.batch)}")
        if not _whole(self.steps, FEWEST_STEPS, MOST_STEPS):
            raise PlanError(f"steps must be a number from {FEWEST_STEPS} to {MOST_STEPS:,}, not {brief(self.steps)}")
        if not _whole(self.updates, FEWEST_UPDATES, MOST_UPDATES):
            what = f"a number from {FEWEST_UPDATES} to {MOST_UPDATES:,}"
            raise PlanError(f"updates must be {what}, not {brief(self.updates)}")
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise PlanError(f"precision must be one of {', '.join(PRECISIONS)}, not {brief(self.precision)}")


def _several(values: Any, most: int, good, different: bool = True) -> bool:
    """Is this a tuple of 1 to `most` values that are `good`?"""
    if not isinstance(values, Sequence) or isinstance(values, str) or not 1 <= len(values) <= most:
        return False
    return all(map(good, values)) and (not different or len(set(values)) == len(values))


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_sigma(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < LARGEST_SIGMA


@dataclass(frozen=True)
class Case:
    """One batch: x [N, C, H, W] = image + sigma noise, sigma [N], labels [N, label_dim] or None, in float32."""

    images: np.ndarray
    noise: np.ndarray  # unit variance
    sigma: np.ndarray
    labels: np.ndarray | None

    @property
    def x(self) -> np.ndarray:
        return self.images + self.sigma[:, None, None, None] * self.noise

    def first(self, count: int) -> "Case":
        labels = None if self.labels is None else self.labels[:count]
        return Case(self.images[:count], self.noise[:count], self.sigma[:count], labels)


# Of a network of which nothing is known but what it computes.
OF_ANY_DENOISER = ("forward", "derivative", "trajectory")


@dataclass(frozen=True)
class TrainingStep:
    """The step that both frameworks take: NVlabs' Adam and power-function average, some steps on.

    Adam's second moment is the mean square of the true gradient: with none, as in a first step, the update would be the
    gradient's sign, which rounding decides wherever it is small.
    """

    batch: int = 2
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    steps_before: int = 10
    images_seen: int = 20480
    images_per_step: int = 2048
    ema_std: float = 0.1  # relative standard deviation of the average's profile


STEP = TrainingStep()


@dataclass(frozen=True)
class Training:
    """A training of a few steps that both frameworks take from one state, by settings that show in so few.

    images, steps: that were seen, and Adam had taken, before. stds: of the power-function averages. eps: Adam's, in the
    middle of the gradients' sizes, so that no update is a gradient's sign, which rounding decides where it is small.
    The learning rate rises over two steps, from 0 if nothing was seen, and falls afterwards.
    """

    images: int = 0
    steps: int = 0
    stds: tuple[float, ...] = (0.05, 0.1)
    eps: float = 1e-8

    BATCH: ClassVar = 4  # images in a step
    PARTS: ClassVar = 2  # that JAX takes these in; PyTorch takes all at once
    LEARNING_RATE: ClassVar = 0.02
    BETAS: ClassVar = (0.9, 0.99)
    LOSS_SCALING: ClassVar = 8.0
    P_MEAN: ClassVar = -0.8
    P_STD: ClassVar = 1.6

    @property
    def rampup_images(self) -> int:
        return self.images + 2 * self.BATCH

    @property
    def decay_batches(self) -> float:
        return max(self.images / self.BATCH / 2, 2.0)


@dataclass(frozen=True)
class Batch:
    """Of one step: images and noise [N, C, H, W], levels [N], of which come the sigmas, labels [N, label_dim] or None.
    Noise and levels are standard normal; all float32."""

    images: np.ndarray
    levels: np.ndarray
    noise: np.ndarray
    labels: np.ndarray | None


def make_batch(config: EDM2Config, seed: int, step: int) -> Batch:
    """Of the step with this number of the check training. Images are noise with the deviation of the data."""
    rng = np.random.default_rng([seed, 2, step])
    count, size = Training.BATCH, config.img_resolution
    shape = count, config.img_channels, size, size
    images = (rng.standard_normal(shape) * config.sigma_data).astype(np.float32)
    levels, noise = (rng.standard_normal(shape).astype(np.float32) for shape in ((count,), shape))
    labels = None
    if config.label_dim:
        labels = np.zeros((count, config.label_dim), np.float32)
        labels[np.arange(count), rng.integers(config.label_dim, size=count)] = 1
    return Batch(images, levels, noise, labels)


def make_case(config: EDM2Config, plan: Plan, seed: int) -> Case:
    """The batch of a seed. Images are noise with the standard deviation of the data; every fourth image, from the
    second on, has no label (zeros)."""
    rng = np.random.default_rng(seed)
    n, r = plan.batch, config.img_resolution
    shape = n, config.img_channels, r, r
    images = (rng.standard_normal(shape) * config.sigma_data).astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    sigma = np.resize(np.asarray(plan.sigmas, np.float32), n)
    labels = None
    if config.label_dim:
        labels = np.zeros((n, config.label_dim), np.float32)
        labelled = np.arange(n) % 4 != 1
        labels[labelled, rng.integers(config.label_dim, size=n)[labelled]] = 1
    return Case(images, noise, sigma, labels)


def trajectory_start(config: EDM2Config, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Unit noise [1, C, H, W] and a label [1, label_dim] or None, in float32."""
    rng = np.random.default_rng([seed, 1])
    noise = rng.standard_normal((1, config.img_channels, config.img_resolution, config.img_resolution))
    labels = None
    if config.label_dim:
        labels = np.zeros((1, config.label_dim), np.float32)
        labels[0, rng.integers(config.label_dim)] = 1
    return noise.astype(np.float32), labels
