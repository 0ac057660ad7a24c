"""How a network is trained: NVlabs' settings for every published size, and the learning rate they add up to.

Numbers are those of arXiv 2312.02696, Table 6 and Appendix B, and of NVlabs' train_edm2.py. Needs no jax.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

MI = 2**20


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    batch_size: images in a step, on all devices together. learning_rate: alpha_ref, the highest. decay_batches: steps
    after which it falls as their inverse square root; 0: never. rampup_images: over which it rises from 0. P_mean,
    P_std: of ln(sigma). betas, eps: Adam's. loss_scaling: of the gradient. stds: relative standard deviations of the
    power-function averages. duration: images that NVlabs trained for. dropout: of the network.
    Raises: ValueError for what is no recipe.
    """

    batch_size: int = 2048
    learning_rate: float = 1e-2
    decay_batches: float = 70000
    rampup_images: float = 10e6
    P_mean: float = -0.4
    P_std: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    loss_scaling: float = 1.0
    stds: tuple[float, ...] = (0.05, 0.1)
    duration: int = 2048 * MI
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("betas", "stds"):  # lists too; jit wants what can be hashed
            object.__setattr__(self, name, tuple(getattr(self, name)))
        numbers = {name: value for name, value in vars(self).items() if name not in ("betas", "stds")}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r:.100}")
        if not isinstance(self.batch_size, int):
            raise ValueError(f"batch_size must be an integer, not {self.batch_size!r}")
        for name in ("batch_size", "learning_rate", "P_std", "eps", "loss_scaling", "duration"):
            if not numbers[name] > 0:
                raise ValueError(f"{name} must be above 0, not {numbers[name]!r}")
        for name in ("decay_batches", "rampup_images"):
            if not numbers[name] >= 0:
                raise ValueError(f"{name} must not be below 0, and is {numbers[name]!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, not {self.betas!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, not {self.dropout!r}")

    def rate(self, images: Any) -> Any:
        """The learning rate (Eq. 67) of the step that begins when so many images were seen: 0 for the first.

        images: a number, which gives a float; or a float32 array, traced or not, which gives one.
        """
        if isinstance(images, int | float):
            decay = (
                1 / math.sqrt(max(images / (self.decay_batches * self.batch_size), 1)) if self.decay_batches else 1.0
            )
            return self.learning_rate * decay * (min(images / self.rampup_images, 1) if self.rampup_images else 1.0)
        import jax.numpy as jnp

        rate = jnp.full_like(images, self.learning_rate)
        if self.decay_batches:
            rate = rate / jnp.sqrt(jnp.maximum(images / (self.decay_batches * self.batch_size), 1.0))
        return rate * jnp.minimum(images / self.rampup_images, 1.0) if self.rampup_images else rate


_512, _64 = Recipe(), Recipe(decay_batches=35000, P_mean=-0.8, P_std=1.6, duration=1024 * MI)
_RECIPES = {
    "edm2-img512-xxs": dataclasses.replace(_512, learning_rate=0.0170),
    "edm2-img512-xs": dataclasses.replace(_512, learning_rate=0.0120),
    "edm2-img512-s": dataclasses.replace(_512, learning_rate=0.0100),
    "edm2-img512-m": dataclasses.replace(_512, learning_rate=0.0090, dropout=0.10),
    "edm2-img512-l": dataclasses.replace(_512, learning_rate=0.0080, dropout=0.10, duration=1792 * MI),
    "edm2-img512-xl": dataclasses.replace(_512, learning_rate=0.0070, dropout=0.10, duration=1280 * MI),
    "edm2-img512-xxl": dataclasses.replace(_512, learning_rate=0.0065, dropout=0.10, duration=896 * MI),
    "edm2-img64-xs": dataclasses.replace(_64, learning_rate=0.0120),
    "edm2-img64-s": dataclasses.replace(_64, learning_rate=0.0100),
    "edm2-img64-m": dataclasses.replace(_64, learning_rate=0.0090, dropout=0.10, duration=2048 * MI),
    "edm2-img64-l": dataclasses.replace(_64, learning_rate=0.0080, dropout=0.10),
    "edm2-img64-xl": dataclasses.replace(_64, learning_rate=0.0070, dropout=0.10, duration=640 * MI),
}


PRESETS = tuple(_RECIPES)


def recipe_for(preset: str, **changes: Any) -> Recipe:
    """NVlabs' recipe of a size: edm2-img512-xxs to -xxl, edm2-img64-xs to -xl; `changes`: fields that are others.

    Raises: ValueError for an unknown preset or field, or what `Recipe` refuses.
    """
    if preset not in _RECIPES:
        raise ValueError(f"{preset!r:.100} is no preset of a training; known are {', '.join(_RECIPES)}")
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"a recipe has no {unknown[0]!r:.100}, but {', '.join(sorted(known))}")
    return dataclasses.replace(_RECIPES[preset], **changes)
