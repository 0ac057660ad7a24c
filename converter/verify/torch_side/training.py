"""A training of a few steps: the truth, its condition numbers, and PyTorch's own error."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jax_edm2.state_layout import NET, average_part
from jax_edm2.torch_ref.training import learning_rate, power_function_exponent

from ...names import jax_path
from ...training_state import KEYS
from ...weights import Weights
from .. import cases
from ..cases import make_batch
from ..metrics import difference, training_norm
from ..precision import PRECISIONS
from ..shapes import TRAINING, trained
from .conditioning import Rounding, condition, largest
from .loss import losses, normalise, with_gradients
from .session import Session, as_numpy

Keep = Callable[[str, np.ndarray], None]


class Training:
    """The steps of a session. about: its settings, for the facts.

    start: a whole training state, whose network is the session's; None is a training that begins with that.
    """

    def __init__(self, session: Session, start: Weights | None, about: cases.Training):
        self._session, self._start, self.about = session, start, about
        self._numbers: dict[str, float] = {}  # condition numbers, by key

    def write(self):
        """The truth."""
        sizes: list[float] = []
        self._run(lambda key, value: None, "float32", updates=1, sizes=sizes)
        middle = float(np.median([size for size in sizes if size > 0] or [1.0]))
        self.about = dataclasses.replace(self.about, eps=2.0 ** round(math.log2(middle)))
        self._run(self._session.keep, "float32")
        self._numbers = largest(self._conditions, PRECISIONS[self._session.plan.precision].rounding)

    def errors(self) -> dict[str, Any]:
        """Of PyTorch in the precision that is judged, by key."""
        found = {}

        def compare(key, value):
            error = difference(np.asarray(value), self._session.truth[key], self._norm(key)).error
            found[key] = {"error": error, "condition": self._numbers[key]}

        self._run(compare, self._session.plan.precision)
        return found

    def _run(self, keep: Keep, precision: str, updates: int | None = None, sizes: list[float] | None = None):
        """Train, in NVlabs' order. keep: is given what comes of it. sizes: gets root mean squares of gradients."""
        session, about = self._session, self.about
        net = session.reference.net
        parameters = dict(net.named_parameters())
        adam = torch.optim.Adam(net.parameters(), lr=1.0, betas=about.BETAS, eps=about.eps)
        averages = {std: {name: p.detach().clone() for name, p in parameters.items()} for std in about.stds}
        if self._start is not None:
            for name, parameter in parameters.items():
                moments = {torchs: self._read(part, name) for part, torchs in KEYS.items()}
                adam.state[parameter] = {"step": torch.tensor(float(about.steps)), **moments}
            for std, average in averages.items():
                for name in average:
                    average[name] = self._read(average_part(std), name)
        images = about.images
        shown: dict[str, list[float]] = {"loss": [], "gradient_norm": [], "rate": []}
        for step in range(session.plan.updates if updates is None else updates):
            loss = self._backward(step, precision)
            gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
            if sizes is not None:
                sizes += [float(gradient.double().square().mean().sqrt()) for gradient in gradients]
            shown["gradient_norm"].append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
            for gradient in gradients:
                torch.nan_to_num(gradient, nan=0, posinf=0, neginf=0, out=gradient)
            rate = learning_rate(images, about.BATCH, about.LEARNING_RATE, about.decay_batches, about.rampup_images)
            adam.param_groups[0]["lr"] = rate
            adam.step()
            adam.zero_grad(set_to_none=True)
            images += about.BATCH
            for std, average in averages.items():
                beta = (1 - about.BATCH / images) ** (power_function_exponent(std) + 1)
                for name, parameter in parameters.items():
                    average[name].lerp_(parameter.detach(), 1 - beta)
            shown["loss"].append(loss)
            shown["rate"].append(rate)
        for key, values in {**shown, "images": images}.items():
            keep(f"{TRAINING}/{key}", np.asarray(values, np.float64))
        for name, parameter in parameters.items():
            after = {NET: parameter, **{part: adam.state[parameter][torchs] for part, torchs in KEYS.items()}}
            for part, value in (after | {average_part(std): a[name] for std, a in averages.items()}).items():
                keep(f"{TRAINING}/{part}/{name}", as_numpy(value).astype(np.float32))
        session.reference.reload()

    def _backward(self, step: int, precision: str) -> float:
        """The mean loss of a step's batch. Weights are normalised first, and gradients are left in them."""
        session, about = self._session, self.about
        batch = make_batch(session.config, session.plan.seeds[0], step)
        normalise(session)
        sigma = (about.P_MEAN + about.P_STD * session.put(batch.levels)).exp().reshape(-1, 1, 1, 1)
        with with_gradients(session):
            images, noise = session.put(batch.images), session.put(batch.noise)
            loss = losses(session, images, sigma, noise, batch.labels, precision)
            (loss.sum() * (about.LOSS_SCALING / about.BATCH)).backward()
        return float(loss.detach().mean())

    def _read(self, part: str, name: str) -> torch.Tensor:
        assert self._start is not None
        return self._session.put(self._start.read(f"{part}/{jax_path(name)}"))

    def _conditions(self, rounding: Rounding) -> dict[str, float]:
        """The condition numbers of all that comes of the steps."""
        found = {}

        def note(key, value):
            found[key] = condition(value, self._session.truth[key], rounding.noise, self._norm(key))

        with rounding.norms(self._session.reference.namespace), self._session.tapped(rounding.visit):
            self._run(note, "float32")
        return found

    def _norm(self, key: str) -> float | None:
        return training_norm(key, trained(self._session.config), self._session.truth)
