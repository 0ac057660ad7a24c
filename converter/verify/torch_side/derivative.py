"""The derivative: the gradient by the noise of the EDM loss of D, of the denoiser as it is.

The loss is mean(lambda(sigma) |D - y|^2) with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (arXiv
2206.00364, Eq. 8 and Table 1), which needs D alone: anybody's denoiser has it. At every noise level the residual branch
is as large in it as the skip connection, of which D is nearly all at low ones. The check gradients is of the weights
as a training step normalises them first, and so of another function.
"""

from typing import Any

import numpy as np
import torch

from ..cases import Case
from ..metrics import difference
from ..precision import PRECISIONS
from ..shapes import DERIVATIVE
from .conditioning import Rounding, condition, largest
from .loss import with_gradients
from .session import Session, as_numpy


class Derivative:
    """Of all batches of a session."""

    def __init__(self, session: Session):
        self._session, self._truth = session, session.truth
        self._numbers: dict[str, float] = {}  # condition numbers, by key

    def write(self):
        """The truth."""
        for key, case in self._cases():
            self._session.keep(key, self._derive(case))
        self._numbers = largest(self._conditions, PRECISIONS[self._session.plan.precision].rounding)

    def errors(self) -> dict[str, Any]:
        """Of PyTorch in the precision that is judged, by key."""
        precision = self._session.plan.precision
        found = {key: difference(self._derive(case, precision), self._truth[key]) for key, case in self._cases()}
        return {key: {"error": each.error, "condition": self._numbers[key]} for key, each in found.items()}

    def _cases(self):
        return [(f"{DERIVATIVE}/{name}", case) for name, case in self._session.cases()]

    def _derive(self, case: Case, precision: str = "float32") -> np.ndarray:
        """[N, C, H, W]."""
        session, sigma_data = self._session, self._session.config.sigma_data
        images, sigma = session.put(case.images), session.put(case.sigma[:, None, None, None])
        noise = session.put(case.noise).requires_grad_()
        with with_gradients(session, by_parameters=False):
            denoised = session.reference(images + sigma * noise, sigma, case.labels, precision)
            weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
            (found,) = torch.autograd.grad((weight * (denoised - images) ** 2).mean(), noise)
        return as_numpy(found)

    def _conditions(self, rounding: Rounding) -> dict[str, float]:
        with rounding.norms(self._session.reference.namespace), self._session.tapped(rounding.visit):
            return {key: condition(self._derive(case), self._truth[key], rounding.noise) for key, case in self._cases()}
