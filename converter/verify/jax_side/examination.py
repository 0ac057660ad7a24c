"""What JAX computes, measured against a truth file: everything that a plan checks, or what a golden keeps of it."""

import contextlib
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from jax_edm2.ema import update_average
from jax_edm2.state_layout import NET
from jax_edm2.training import project_to_sphere
from jax_edm2.twofold import Twofold

from ...errors import ConverterError
from ...names import torch_name
from ...weights import Weights
from ..cases import OF_ANY_DENOISER, STEP, Case, make_case
from ..metrics import Difference, difference, gradient_norm, training_norm
from ..outcome import Findings, Progress
from ..request import VerifyError
from ..shapes import DERIVATIVE, TRAINING, trained
from ..taps import EMBEDDED, EMBEDDING, Enough, Tap, boundaries, taps
from ..truth import Truth, projection, reduced
from ..verdict import Tolerance, judge
from .candidate import Candidate
from .denoising import Denoising, raising
from .parameters import compare_parameters
from .ported import Ported, PortExamination
from .training import run_training
from .unread import raised


def examine(
    candidate: Candidate | Ported,
    truth: Truth,
    tolerance: Tolerance,
    *,
    snapshot: Weights | None = None,
    progress: Progress = lambda stage: None,
) -> Findings:
    """Run every check of the truth's plan; of somebody else's denoiser, those that can judge it."""
    findings = Findings()
    if isinstance(candidate, Ported):
        run: Denoising = PortExamination(candidate, truth, tolerance, findings, progress)
    else:
        kind = Examination if truth.golden is None else GoldenExamination
        run = kind(candidate, truth, tolerance, findings, progress)
    for check in truth.plan.checks:
        if isinstance(candidate, Ported) and check not in OF_ANY_DENOISER:
            continue
        progress(check)
        if check == "parameters" and isinstance(candidate, Candidate):
            findings.parameters = compare_parameters(candidate.variables, truth.facts.parameters, snapshot)
        elif check == "forward":
            for seed in truth.plan.seeds:
                run.forward(f"seed{seed}", make_case(truth.config, truth.plan, seed))
        elif check == "gradients" and isinstance(run, _Examination):
            with run.crash("gradients"):
                run.gradients()
        elif check == DERIVATIVE:
            with run.crash(DERIVATIVE):
                run.derivative()
        elif check == "trajectory":
            with run.crash("trajectory"):
                run.trajectory()
        elif check == "training" and isinstance(run, _Examination):
            with run.crash("training"):
                run.training()
    return findings


class _Examination(Denoising):
    """What both kinds have in common. Subclasses say how the network is run forward, and what is kept of the rest."""

    candidate: Candidate

    @abstractmethod
    def kept(self, name: str, gradient: Any) -> np.ndarray:
        """What the truth has of a gradient."""

    @abstractmethod
    def step(self, name: str, parameter: Any, gradient: Any):
        """Measure what a training step makes of a parameter."""

    @abstractmethod
    def of_training(self, run: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """What the truth has of that which a training gives."""

    def gradients(self):
        case = make_case(self.config, self.plan, self.plan.seeds[0]).first(STEP.batch)
        variables = project_to_sphere(raised(self.candidate.variables))
        loss, (gradients, by_input) = self.candidate.differentiate(variables, case)
        self.judge_gradient("gradient", "loss", "loss", np.float64(loss))
        self.judge_gradient("gradient", "input", "gradient/input", self.kept("input", by_input))
        params, gradients = (flatten_dict(tree, sep="/") for tree in (variables["params"], gradients))
        for path, gradient in gradients.items():
            name = torch_name(f"params/{path}")
            self.judge_gradient("gradient", name, f"gradient/{name}", self.kept(name, gradient))
            self.step(name, params[path], gradient)

    def training(self):
        about, names = self.truth.facts.training, trained(self.config)
        assert about is not None
        start = self.candidate.start if about.steps else None
        if about.steps and start is None:
            raise VerifyError(
                f"{self.truth.path}: its training goes on from a training state: give that, with --weights {NET}"
            )
        variables = raised(self.candidate.variables)
        run = run_training(self.candidate.net, variables, start, about, self.plan)
        for key, value in self.of_training(run):
            torch, norm = self.errors["training"][key], training_norm(key, names, self.truth)
            found, name = difference(value, self.truth[key], norm), key.removeprefix(f"{TRAINING}/")
            measured = judge("training", "", name, found, torch["error"], self.tolerance, torch["condition"])
            self.findings.training.append(measured)

    def judge_gradient(self, kind: str, name: str, key: str, value: Any):
        """Beside what the truth has under `key`."""
        norm = gradient_norm(name, self.truth.facts.gradient_sizes) if kind == "gradient" else None
        torch = self.errors["gradients"][key]
        found = difference(np.asarray(value, np.float64), np.asarray(self.truth[key]), norm)
        measured = judge(kind, "", name, found, torch["error"], self.tolerance, torch["condition"])
        self.findings.gradients.append(measured)

    def measure(self, kind: str, case: str, tap: str, value: Any, exact: np.ndarray):
        """The value at a tap."""
        expected = self.errors[case][kind][tap]
        array, dtype = _numpy(value)
        problem = None if dtype == expected["dtype"] else f"is {dtype}, in PyTorch {expected['dtype']}"
        self.note(kind, case, tap, difference(array, exact), expected["error"], expected["condition"], problem)

    def fail(self, kind: str, case: str, tap: str, problem: str):
        self.note(kind, case, tap, Difference(), math.nan, 0.0, problem)


class Examination(_Examination):
    """Everything, operation by operation."""

    def __init__(self, *args):
        super().__init__(*args)
        self._boundaries = boundaries(self.config)

    def forward(self, name: str, case: Case):
        arguments = (case.x, case.sigma, case.labels)
        self._pass(name, "accumulated", arguments)
        self._pass(name, "isolated", arguments)
        self.outputs("compiled", name, lambda: self.candidate.denoise(*arguments))
        self.outputs("folded", name, lambda: self.candidate.denoise_folded(*arguments))
        if self.config.label_dim:
            with self.crash(f"{name}: class_labels=None"), contextlib.suppress(Enough):
                self._unlabelled(f"{name} unlabelled", case)

    def _pass(self, case: str, kind: str, arguments: tuple[Any, Any, Any]):
        """One forward pass with every tap measured; the isolated one continues with the truth after every block."""
        reference = self.errors[case][kind]
        isolated = kind == "isolated"
        seen: set[Tap] = set()

        def visit(tap: Tap, value):
            if tap in seen or str(tap) not in reference:
                self.fail(kind, case, str(tap), "is a tap that the reference does not have, or has once")
                return value
            seen.add(tap)
            amplified = isolated and tap.operation == "clip"
            exact = self.truth[f"{case}/{tap}{'.amplified' if amplified else ''}"]
            self.measure(kind, case, str(tap), value, exact)
            if isolated and tap in self._boundaries:
                return _like(self.truth[f"{case}/{tap}"] if amplified else exact, value)
            return value

        amplify = self.truth.facts.amplification.get(case, {}) if isolated else {}
        try:
            self.candidate.tapped(*arguments, visit, amplify)
        except (KeyboardInterrupt, MemoryError, ConverterError):
            raise
        except Exception as error:
            self.fail(kind, case, str(self._after(self.candidate.tapped.last)), raising(error))
            return
        for tap in taps(self.config):
            if tap not in seen:
                self.fail(kind, case, str(tap), "is missing")

    def _after(self, last: Tap | None) -> Tap:
        """The tap that was to come next."""
        order = taps(self.config)
        if last not in order:
            return last or order[0]
        return order[min(order.index(last) + 1, len(order) - 1)]

    def _unlabelled(self, name: str, case: Case):
        """The embedding of class_labels=None, which is all that labels have to do with."""
        reference = self.errors[name]["accumulated"]

        def visit(tap: Tap, value):
            if tap.scope == EMBEDDING and str(tap) in reference:
                self.measure("accumulated", name, str(tap), value, self.truth[f"{name}/{tap}"])
            if tap == EMBEDDED:
                raise Enough
            return value

        self.candidate.tapped(case.x, case.sigma, None, visit)

    def kept(self, name: str, gradient: Any) -> np.ndarray:
        return gradient

    def step(self, name: str, parameter: Any, gradient: Any):
        new, average = _training_step(parameter, gradient, self.truth.facts.gradient_sizes[name])
        for key, value in ((f"step/{name}", new), (f"ema/{name}", average)):
            self.judge_gradient("step", key, key, value)

    def of_training(self, run: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        return run

    def states(self) -> list[np.ndarray]:
        return self.candidate.trajectory(self.plan, progress=self.progress)


class GoldenExamination(_Examination):
    """What a golden has: some taps of the network compiled as a whole, and projections of gradients."""

    def forward(self, name: str, case: Case):
        self.outputs("compiled", name, lambda: self._compiled(name, case))

    def _compiled(self, name: str, case: Case):
        """(D, logvar), with the taps that the golden keeps measured."""
        reference = self.errors[name]["accumulated"]
        outputs, values = self.candidate.denoise_and_keep(frozenset(reference), case.x, case.sigma, case.labels)
        for tap in reference:
            if tap in values:
                self.measure("accumulated", name, tap, values[tap], self.truth[f"{name}/{tap}"])
            else:
                self.fail("accumulated", name, tap, "is missing")
        return outputs

    def kept(self, name: str, gradient: Any) -> np.ndarray:
        return projection(name, gradient)

    def step(self, name: str, parameter: Any, gradient: Any):
        """A golden has no training step."""

    def of_training(self, run: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        return reduced(run)

    def states(self) -> list[np.ndarray]:
        compiled = frozenset(self.errors[f"seed{self.plan.seeds[0]}"]["accumulated"])
        return self.candidate.trajectory(self.plan, compiled, self.progress)


def _training_step(parameter, gradient, size: float):
    """Adam's new value of a parameter, and its average after that."""
    adam = optax.adam(STEP.learning_rate, *STEP.betas, eps=STEP.eps)
    start = adam.init(parameter)
    moments = start[0]._replace(
        count=jnp.asarray(STEP.steps_before, jnp.int32), nu=jnp.full_like(parameter, np.float32(size**2))
    )
    with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and int32
        update, _ = adam.update(gradient, (moments, *start[1:]), parameter)
        new = optax.apply_updates(parameter, update)
    average = update_average(
        parameter, new, images_seen=STEP.images_seen, batch_size=STEP.images_per_step, std=STEP.ema_std
    )
    return new, average


def _numpy(value) -> tuple[np.ndarray, str]:
    if isinstance(value, Twofold):
        return np.asarray(value.hi, np.float64) + np.asarray(value.lo, np.float64), str(value.hi.dtype)
    return np.asarray(value), str(value.dtype)


def _like(exact: np.ndarray, value):
    """The truth in the type of `value`."""
    if isinstance(value, Twofold):
        hi = exact.astype(value.hi.dtype)
        return Twofold(jnp.asarray(hi), jnp.asarray((exact - hi).astype(value.hi.dtype)))
    return jnp.asarray(exact.astype(value.dtype))
