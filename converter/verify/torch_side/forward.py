"""The forward pass: every tap of it in float64, its condition number, and PyTorch's own error there."""

import contextlib
import math
from typing import Any

import numpy as np
import torch

from ..cases import Case
from ..metrics import difference
from ..precision import PRECISIONS
from ..taps import (
    DENOISED,
    EMBEDDED,
    EMBEDDING,
    LOG_VARIANCE,
    Enough,
    Tap,
    before_clip,
    block_scope,
    boundaries,
)
from .conditioning import conditions
from .session import Session, as_numpy


class Forward:
    """All forward passes of a session.

    errors: of PyTorch in the precision that is judged, by case. repeat: largest relative difference between two runs.
    amplification: by case and block.
    """

    def __init__(self, session: Session):
        self._session, self._truth, self._config = session, session.truth, session.config
        self.errors: dict[str, Any] = {}
        self.repeat: float | None = None
        self.amplification: dict[str, dict[str, float]] = {}
        self._numbers: dict[str, dict[str, dict[str, float]]] = {}  # condition numbers, by case, kind and tap
        self._boundaries = boundaries(session.config)
        blocks = session.config.architecture.encoder + session.config.architecture.decoder
        self._before_clip = {block_scope(spec): before_clip(spec) for spec in blocks}

    def write(self, name: str, case: Case):
        """The truth of one batch, whose name is given."""
        largest: dict[str, float] = {}

        def record(tap: Tap, value):
            self._session.keep(f"{name}/{tap}", value.numpy())
            if self._before_clip.get(tap.scope) == tap.operation:
                largest[tap.scope] = float(value.abs().max())
            return value

        denoised, logvar = self._run(case, record)
        self._session.keep(f"{name}/denoised", denoised.numpy())
        self._session.keep(f"{name}/logvar", logvar.numpy())
        if self._config.label_dim:
            self._embed(case, lambda tap, value: self._session.keep(f"{name} unlabelled/{tap}", value.numpy()))
        self._write_amplified_clips(name, case, largest)
        self._numbers[name] = self._conditions(name, case)

    def compare(self, name: str, case: Case):
        """PyTorch's own errors in the precision that is judged."""
        precision = self._session.plan.precision
        amplify = self.amplification.get(name, {})
        accumulated: dict[str, Any] = {}
        isolated: dict[str, Any] = {}

        numbers = self._numbers[name]

        def note(kind, found, case, tap, value, suffix=""):
            exact = self._truth[f"{case}/{tap}{suffix}"]
            found[str(tap)] = {
                "error": difference(as_numpy(value), exact).error,
                "condition": numbers[kind][str(tap)],
                "dtype": str(value.dtype).removeprefix("torch."),
            }
            return exact

        def accumulate(tap, value):
            note("accumulated", accumulated, name, tap, value)
            return value

        def isolate(tap, value):
            if tap.operation == "clip":
                note("isolated", isolated, name, tap, value, ".amplified")
                return _like(self._truth[f"{name}/{tap}"], value)
            exact = note("isolated", isolated, name, tap, value)
            if self._before_clip.get(tap.scope) == tap.operation:
                return value * amplify.get(tap.scope, 1.0)
            return _like(exact, value) if tap in self._boundaries else value

        first = self._run(case, accumulate, precision)
        again = self._run(case, lambda _tap, value: value, precision)
        self.repeat = max(
            [self.repeat or 0.0] + [_apart(as_numpy(b), as_numpy(a)) for a, b in zip(first, again, strict=True)]
        )
        self._run(case, isolate, precision)
        outputs = {
            output: {
                "error": difference(as_numpy(value), self._truth[f"{name}/{output}"]).error,
                "condition": numbers["accumulated"][str(tap)],
            }
            for output, value, tap in zip(("denoised", "logvar"), first, (DENOISED, LOG_VARIANCE), strict=True)
        }
        self.errors[name] = {"accumulated": accumulated, "isolated": isolated, "outputs": outputs}
        if self._config.label_dim:
            found: dict[str, Any] = {}
            self._embed(
                case, lambda tap, value: note("accumulated", found, f"{name} unlabelled", tap, value), precision
            )
            self.errors[f"{name} unlabelled"] = {"accumulated": found}

    def _run(self, case: Case, visit, precision="float32", labels=True):
        """(D, logvar) of a forward pass whose every tap goes through `visit`."""
        self._session.bar.update()
        given = case.labels if labels else None
        with torch.no_grad(), self._session.tapped(visit):
            return self._session.reference(case.x, case.sigma, given, precision, return_logvar=True)

    def _embed(self, case: Case, visit, precision="float32"):
        """Show `visit` the embedding of class_labels=None, which is all that labels have to do with."""

        def until_embedded(tap, value):
            if tap.scope == EMBEDDING:
                visit(tap, value)
            if tap == EMBEDDED:
                raise Enough
            return value

        with contextlib.suppress(Enough):
            self._run(case, until_embedded, precision, labels=False)

    def _write_amplified_clips(self, name: str, case: Case, largest: dict[str, float]):
        """The clip of every block, of values that are large enough. largest: magnitude before the clip, by block."""
        if self._config.clip_act is None:
            return
        # Nothing is ever clipped in most networks: multiply by a power of two (exact) until something is.
        self.amplification[name] = amplify = {
            scope: 2.0 ** math.ceil(math.log2(2 * self._config.clip_act / size)) if 0 < size < math.inf else 1.0
            for scope, size in largest.items()
        }

        def clip(tap: Tap, value):
            if self._before_clip.get(tap.scope) == tap.operation:
                return value * amplify[tap.scope]
            if tap.operation == "clip":
                self._session.keep(f"{name}/{tap}.amplified", value.numpy())
                return _like(self._truth[f"{name}/{tap}"], value)
            return value

        self._run(case, clip)

    def _conditions(self, name: str, case: Case) -> dict[str, dict[str, float]]:
        """The condition numbers of all taps, in the running network and with the truth before every block."""

        def exact(tap):
            return self._truth[f"{name}/{tap}"]

        def truth_at_boundaries(tap, value):
            return _like(exact(tap), value) if tap in self._boundaries else value

        def run(visit):
            self._run(case, visit)

        noise = PRECISIONS[self._session.plan.precision].rounding
        return {
            "accumulated": conditions(run, exact, noise=noise),
            "isolated": conditions(run, exact, truth_at_boundaries, noise),
        }


def _like(array: np.ndarray, tensor):
    return torch.from_numpy(array.copy()).to(tensor.device, tensor.dtype)


def _apart(x, y) -> float:
    if np.array_equal(x, y, equal_nan=True):
        return 0.0
    found = difference(x, np.asarray(y, np.float64)).error
    return found if math.isfinite(found) else math.inf
