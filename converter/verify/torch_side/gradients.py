"""Gradients and one training step: the truth, its condition numbers, and PyTorch's own error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jax_edm2.torch_ref.training import power_function_exponent

from ..cases import STEP, make_case
from ..metrics import difference, gradient_norm
from ..precision import PRECISIONS
from .conditioning import Rounding, condition, largest
from .loss import losses, normalise, with_gradients
from .session import Session, as_numpy

Keep = Callable[[str, np.ndarray], None]


class Gradients:
    """The gradients of a session. sizes: root mean square of every parameter's true gradient, by name."""

    def __init__(self, session: Session):
        self._session, self._truth, self._config = session, session.truth, session.config
        self.sizes: dict[str, float] = {}
        self._numbers: dict[str, float] = {}  # condition numbers, by key

    def write(self):
        """The truth."""
        loss = self._step(lambda key, value: self._session.keep(key, value.astype(np.float32)))
        self._session.keep("loss", np.asarray(loss, np.float64))
        self._numbers = largest(self._conditions, PRECISIONS[self._session.plan.precision].rounding)

    def errors(self) -> dict[str, Any]:
        """Of PyTorch in the precision that is judged, by key."""
        found = {}

        def compare(key, value):
            error = difference(value, self._truth[key], self._norm(key)).error
            found[key] = {"error": error, "condition": self._numbers[key]}

        loss = self._step(compare, self._session.plan.precision)
        exact = float(self._truth["loss"])
        return {"loss": {"error": abs(loss - exact) / abs(exact), "condition": 0.0}, **found}

    def _step(self, keep: Keep, precision="float32") -> float:
        """The loss of one training step: forced weight normalisation, gradient, Adam, EMA.

        keep(key, array) is given the gradient, the new value and the new average of every parameter.
        """
        net = self._session.reference.net
        loss, by_input = self._backward(precision)
        keep("gradient/input", as_numpy(by_input))
        decay = (1 - STEP.images_per_step / STEP.images_seen) ** (power_function_exponent(STEP.ema_std) + 1)
        for name, parameter in net.named_parameters():  # one by one: Adam's state of all would double the memory
            gradient = parameter.grad
            keep(f"gradient/{name}", as_numpy(gradient))
            self.sizes.setdefault(name, float(gradient.double().square().mean().sqrt()))
            average = parameter.detach().clone()
            adam = torch.optim.Adam([parameter], lr=STEP.learning_rate, betas=STEP.betas, eps=STEP.eps)
            adam.state[parameter] = {
                "step": torch.tensor(float(STEP.steps_before)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.full_like(parameter, self.sizes[name] ** 2),
            }
            adam.step()
            keep(f"step/{name}", as_numpy(parameter))
            average.lerp_(parameter.detach(), 1 - decay)
            keep(f"ema/{name}", as_numpy(average))
            parameter.grad = None
        self._session.reference.reload()
        return loss

    def _backward(self, precision="float32") -> tuple[float, torch.Tensor]:
        """The mean loss and its gradient by the noise.

        Weights are normalised first, and the gradients by parameters are left in them.
        """
        session = self._session
        case = make_case(self._config, session.plan, session.plan.seeds[0]).first(STEP.batch)
        images, sigma = session.put(case.images), session.put(case.sigma[:, None, None, None])
        noise = session.put(case.noise).requires_grad_()
        normalise(session)
        with with_gradients(session):
            loss = losses(session, images, sigma, noise, case.labels, precision).mean()
            loss.backward()
        assert noise.grad is not None
        return float(loss.detach()), noise.grad

    def _conditions(self, rounding: Rounding) -> dict[str, float]:
        """The condition numbers of all gradients, and of what the training step makes of them, by their keys."""
        found = {}

        def note(key, value):
            found[key] = condition(value, self._truth[key], rounding.noise, self._norm(key))

        with rounding.norms(self._session.reference.namespace), self._session.tapped(rounding.visit):
            self._step(note)
        return found

    def _norm(self, key: str) -> float | None:
        kind, name = key.split("/", 1)
        return gradient_norm(name, self.sizes) if kind == "gradient" else None
