"""What JAX computes, measured against a truth file. Needs no torch."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from converter.errors import ConverterError
from converter.names import torch_name
from converter.snapshot import Snapshot
from converter.verify.cases import STEP, Case, Plan, make_case, trajectory_start
from converter.verify.jax_side.taps import TappedNetwork
from converter.verify.jax_side.unread import Unread, make_room, raised, shapes, stored
from converter.verify.metrics import Difference, difference, gradient_norm, psnr
from converter.verify.taps import EMBEDDED, EMBEDDING, Enough, Tap, boundaries, taps
from converter.verify.truth import Truth, projection
from converter.verify.verdict import Measurement, Tolerance, judge
from jax_edm2.config import EDM2Config
from jax_edm2.ema import update_average
from jax_edm2.folding import fold
from jax_edm2.network import Precond
from jax_edm2.sampling import heun_states
from jax_edm2.settings import noise_levels
from jax_edm2.training import denoising_loss, project_to_sphere
from jax_edm2.twofold import Twofold


@dataclass
class Findings:
    """Everything that was measured. parameters: (name, how it differs) of those that are not equal."""

    parameters: list[tuple[str, str]] | None = None
    forward: list[Measurement] = field(default_factory=list)
    gradients: list[Measurement] = field(default_factory=list)
    trajectory: list[Measurement] = field(default_factory=list)
    crashes: list[tuple[str, str]] = field(default_factory=list)  # (where, why) of what JAX could not compute
    facts: dict[str, Any] = field(default_factory=dict)


Progress = Callable[[str], None]


class Candidate:
    """A network and its variables, with the compiled functions that examining it takes.

    variables: arrays; or some of them `Unread`, of a network that is too large to be held beside something else.
    Blocks are then given theirs one after the other, and the network as a whole for as long as it runs.
    config: the architecture that is expected of it.
    """

    def __init__(self, net: Precond, variables: Any, config: EDM2Config):
        self.net, self.variables, self.config = net, variables, config
        self.tapped = TappedNetwork(net, variables, config)
        self._compiled: dict[Any, Any] = {}
        self._trajectory: list[np.ndarray] | None = None

        def denoise(variables, x, sigma, labels):
            return net.apply(variables, x, sigma, labels, return_logvar=True)

        def differentiate(variables, images, sigma, noise, labels):
            def loss(params, noise):
                return jnp.mean(denoising_loss(net, {**variables, "params": params}, images, sigma, noise, labels))

            return jax.value_and_grad(loss, (0, 1))(variables["params"], noise)

        self._functions = {"denoise": jax.jit(denoise), "differentiate": jax.jit(differentiate)}

    def denoise(self, x, sigma, labels) -> tuple[jax.Array, jax.Array]:
        """(D, logvar) of the network compiled as a whole."""
        return self._call("denoise", self._whole(), x, sigma, labels)

    def denoise_folded(self, x, sigma, labels) -> tuple[jax.Array, jax.Array]:
        """The same of the network that samplers use, whose weights are prepared once.

        Winograd's are 16/9 of those that are stored: where these are `Unread`, images come one by one, to save room.
        """
        if large := self._has_unread():
            make_room()
        net, variables = fold(self.net, self.variables)
        denoise = self._compiled.setdefault("folded", jax.jit(partial(net.apply, return_logvar=True)))
        count = len(x) if large else 1
        parts = ([None] * count if v is None else np.split(np.asarray(v), count) for v in (x, sigma, labels))
        denoised, logvar = zip(*(denoise(variables, *part) for part in zip(*parts, strict=True)), strict=True)
        return jnp.concatenate(denoised), jnp.concatenate(logvar)

    def differentiate(self, variables, case: Case):
        """(loss, (gradients of the parameters, gradient of the noise)) of the mean EDM2 loss."""
        return self._call("differentiate", variables, case.images, case.sigma, case.noise, case.labels)

    def _call(self, name, *arguments):
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return self._functions[name](*arguments)
        return self._compile(name, *arguments)(*arguments)

    def _compile(self, name, variables, *arguments):
        key = name, str(jax.tree_util.tree_map(jnp.shape, arguments))
        if key not in self._compiled:
            self._compiled[key] = self._functions[name].lower(variables, *arguments).compile()
        return self._compiled[key]

    def denoise_and_keep(self, names: frozenset[str], x, sigma, labels) -> tuple[Any, dict[str, Any]]:
        """(D, logvar) of the network compiled as a whole, and the values at the taps that are named."""

        def run(variables, x, sigma, labels):
            seen: dict[str, Any] = {}

            def visit(tap: Tap, value):
                if str(tap) in names:
                    seen[str(tap)] = value
                return value

            return TappedNetwork(self.net, variables, self.config)(x, sigma, labels, visit), seen

        compiled = self._compiled.setdefault(names, jax.jit(run))
        return compiled(self._whole(), x, sigma, labels)

    def trajectory(self, plan: Plan, keep: frozenset[str] | None = None) -> list[np.ndarray]:
        """The states [1, C, H, W] of the Heun sampler, one for each noise level; computed once.

        keep: use what `denoise_and_keep` has compiled for these taps and the plan's batch.
        """
        if self._trajectory is None:
            noise, labels = trajectory_start(self.config, plan.seeds[0])
            variables = self._whole()

            def denoise(x, sigma):
                if keep is None:
                    return self._call("denoise", variables, x, np.asarray([sigma], np.float32), labels)[0]
                x, several = (None if v is None else np.repeat(v, plan.batch, axis=0) for v in (x, labels))
                return self.denoise_and_keep(keep, x, np.full(plan.batch, sigma, np.float32), several)[0][0][:1]

            states = heun_states(denoise, jnp.asarray(noise), noise_levels(plan.steps))
            self._trajectory = [np.asarray(x, np.float64) for x in states]
        return self._trajectory

    def prepare(self, plan: Plan):
        """Compile what the plan's checks need, and compute what needs no truth, while somebody else computes that.

        A network with `Unread` variables is not run as a whole: that somebody needs the memory.
        """
        case, large = make_case(self.config, plan, plan.seeds[0]), self._has_unread()
        if "forward" in plan.checks:
            self._compile("denoise", shapes(self.variables), case.x, case.sigma, case.labels)
            self.tapped(case.x, case.sigma, case.labels, lambda _tap, value: value)
        if "gradients" in plan.checks:
            few = case.first(STEP.batch)
            variables = shapes(self.variables, jnp.float32)
            self._compile("differentiate", variables, few.images, few.sigma, few.noise, few.labels)
        if "trajectory" in plan.checks and not large:
            self.trajectory(plan)
        if large:
            make_room()

    def _whole(self) -> Any:
        """All variables, for the network as a whole."""
        if self._has_unread():
            make_room()
        return stored(self.variables)

    def _has_unread(self) -> bool:
        return any(isinstance(leaf, Unread) for leaf in jax.tree_util.tree_leaves(self.variables))


def examine(
    candidate: Candidate,
    truth: Truth,
    tolerance: Tolerance,
    *,
    snapshot: Snapshot | None = None,
    progress: Progress = lambda stage: None,
) -> Findings:
    """Run every check of the truth's plan."""
    findings = Findings()
    run = _Examination(candidate, truth, tolerance, findings)
    for check in truth.plan.checks:
        progress(check)
        if check == "parameters":
            findings.parameters = compare_parameters(candidate.variables, truth.facts["parameters"], snapshot)
        elif check == "forward":
            for seed in truth.plan.seeds:
                run.forward(seed)
        elif check == "gradients":
            with run.crash("gradients"):
                run.gradients()
        elif check == "trajectory":
            with run.crash("trajectory"):
                run.trajectory()
    return findings


# Parameters


def compare_parameters(
    variables: Any, expected: Mapping[str, Any], snapshot: Snapshot | None = None
) -> list[tuple[str, str]]:
    """Names of parameters and buffers that are not exactly equal after the cast to float32, and how they differ.

    expected: shape and sha256 of every tensor, by its name in the snapshot. With the snapshot itself the message says
    how much is different.
    """
    leaves = {torch_name(path): value for path, value in flatten_dict(variables, sep="/").items()}
    differing = []
    owners = {entry["sha256"]: name for name, entry in expected.items()}
    for name, entry in expected.items():
        if name not in leaves:
            differing.append((name, "is missing"))
            continue
        value = np.asarray(leaves[name], "<f4", order="C")
        if list(value.shape) != entry["shape"]:
            differing.append((name, f"has shape {list(value.shape)}, should be {entry['shape']}"))
            continue
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        if digest == entry["sha256"]:
            continue
        why = "differs"
        if digest in owners:
            why = f"holds the values of {owners[digest]}"
        elif snapshot is not None:
            why = _how_different(value, np.asarray(snapshot.read(name), np.float32))
        differing.append((name, why))
    differing += [(name, "is not in the snapshot") for name in leaves if name not in expected]
    return differing


def _how_different(value: np.ndarray, exact: np.ndarray) -> str:
    bits, wanted = value.view(np.uint32), exact.view(np.uint32)
    unequal = np.argwhere(bits != wanted)
    if not len(unequal):
        return "differs from the truth file's, though not from the snapshot's"
    first = tuple(int(i) for i in unequal[0])
    if value.ndim >= 2 and value.shape[0] == value.shape[1] and np.array_equal(value, exact.swapaxes(0, 1)):
        return "is transposed"
    place = f" at {list(first)}" if first else ""
    return (
        f"differs in {len(unequal):,} of {value.size:,} values, first{place}: "
        f"{float(value[first]):.9g}, should be {float(exact[first]):.9g}"
    )


# The network


class _Examination:
    def __init__(self, candidate: Candidate, truth: Truth, tolerance: Tolerance, findings: Findings):
        self.candidate, self.truth, self.tolerance, self.findings = candidate, truth, tolerance, findings
        self.config, self.plan, self.errors = truth.config, truth.plan, truth.facts["errors"]
        self.thin = truth.golden is not None  # a golden has some taps only, and projections of gradients
        self.boundaries = boundaries(self.config)

    @contextlib.contextmanager
    def crash(self, where: str) -> Iterator[None]:
        """What JAX raises in the body is a finding, not an end."""
        try:
            yield
        except (KeyboardInterrupt, MemoryError, ConverterError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            self.findings.crashes.append((where, f"raised {type(error).__name__}: {text:.200}"))

    # Forward

    def forward(self, seed: int):
        name, case = f"seed{seed}", make_case(self.config, self.plan, seed)
        arguments = (case.x, case.sigma, case.labels)
        outputs = self.errors[name]["outputs"]
        if not self.thin:
            self._pass(name, "accumulated", arguments)
            self._pass(name, "isolated", arguments)
        if self.thin:
            ways = {"compiled": lambda: self._kept(name, arguments)}
        else:
            ways = {
                "compiled": lambda: self.candidate.denoise(*arguments),
                "folded": lambda: self.candidate.denoise_folded(*arguments),
            }
        for kind, way in ways.items():
            with self.crash(f"{name}: the {kind} network"):
                for output, value in zip(("denoised", "logvar"), way(), strict=True):
                    found = difference(np.asarray(value, np.float64), self.truth[f"{name}/{output}"])
                    error, condition = outputs[output]["error"], outputs[output]["condition"]
                    self._note(kind, name, output, found, error, condition)
        if self.config.label_dim and not self.thin:
            with self.crash(f"{name}: class_labels=None"), contextlib.suppress(Enough):
                self._unlabelled(f"{name} unlabelled", case)

    def _unlabelled(self, name: str, case: Case):
        """The embedding of class_labels=None, which is all that labels have to do with."""
        reference = self.errors[name]["accumulated"]

        def visit(tap: Tap, value):
            if tap.scope == EMBEDDING and str(tap) in reference:
                self._measure("accumulated", name, tap, value, self.truth[f"{name}/{tap}"], reference[str(tap)])
            if tap == EMBEDDED:
                raise Enough
            return value

        self.candidate.tapped(case.x, case.sigma, None, visit)

    def _pass(self, case: str, kind: str, arguments: tuple[Any, Any, Any]):
        """One forward pass with every tap measured; the isolated one goes on with the truth after every block."""
        reference = self.errors[case][kind]
        isolated = kind == "isolated"
        seen: set[Tap] = set()

        def visit(tap: Tap, value):
            if tap in seen or str(tap) not in reference:
                self._fail(kind, case, tap, "is a tap that the reference does not have, or has once")
                return value
            seen.add(tap)
            amplified = isolated and tap.operation == "clip"
            exact = self.truth[f"{case}/{tap}{'.amplified' if amplified else ''}"]
            self._measure(kind, case, tap, value, exact, reference[str(tap)])
            if isolated and tap in self.boundaries:
                return _like(self.truth[f"{case}/{tap}"] if amplified else exact, value)
            return value

        amplify = self.truth.facts["amplification"].get(case, {}) if isolated else {}
        try:
            self.candidate.tapped(*arguments, visit, amplify)
        except (KeyboardInterrupt, MemoryError, ConverterError):
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            at = self._after(self.candidate.tapped.last)
            self._fail(kind, case, at, f"raised {type(error).__name__}: {text:.200}")
            return
        for tap in taps(self.config):
            if tap not in seen:
                self._fail(kind, case, tap, "is missing")

    def _kept(self, case: str, arguments: tuple[Any, Any, Any]):
        """(D, logvar) of the network compiled as a whole, with the taps that a golden keeps measured."""
        reference = self.errors[case]["accumulated"]
        outputs, values = self.candidate.denoise_and_keep(frozenset(reference), *arguments)
        for name, expected in reference.items():
            if name in values:
                tap = Tap(*name.rsplit("/", 1))
                self._measure("accumulated", case, tap, values[name], self.truth[f"{case}/{name}"], expected)
            else:
                self._note("accumulated", case, name, Difference(), math.nan, 0.0, "is missing")
        return outputs

    def _after(self, last: Tap | None) -> Tap:
        """The tap that was to come next."""
        order = taps(self.config)
        if last not in order:
            return last or order[0]
        return order[min(order.index(last) + 1, len(order) - 1)]

    def _measure(self, kind, case, tap, value, exact, reference):
        array, dtype = _numpy(value)
        problem = None if dtype == reference["dtype"] else f"is {dtype}, in PyTorch {reference['dtype']}"
        found = difference(array, exact)
        self._note(kind, case, str(tap), found, reference["error"], reference["condition"], problem)

    def _fail(self, kind, case, tap, problem):
        self._note(kind, case, str(tap), Difference(), math.nan, 0.0, problem)

    def _note(self, kind, case, name, found, torch_error, condition, problem=None):
        measured = judge(kind, case, name, found, torch_error, self.tolerance, condition, problem)
        self.findings.forward.append(measured)

    # Gradients and one training step

    def gradients(self):
        case = make_case(self.config, self.plan, self.plan.seeds[0]).first(STEP.batch)
        errors = self.errors["gradients"]
        variables = project_to_sphere(raised(self.candidate.variables))
        loss, (gradients, by_input) = self.candidate.differentiate(variables, case)
        exact = float(self.truth["loss"])
        self._judge_gradient("gradient", "loss", np.float64(loss), np.float64(exact), errors["loss"])
        self._judge_gradient("gradient", "input", by_input, self.truth["gradient/input"], errors["gradient/input"])
        params, gradients = (flatten_dict(tree, sep="/") for tree in (variables["params"], gradients))
        sizes = self.truth.facts["gradient_sizes"]
        for path, gradient in gradients.items():
            name = torch_name(f"params/{path}")
            key = f"gradient/{name}"
            self._judge_gradient("gradient", name, gradient, self.truth[key], errors[key])
            if self.thin:  # no training step
                continue
            new, average = _training_step(params[path], gradient, sizes[name])
            for kind, value in (("step", new), ("ema", average)):
                key = f"{kind}/{name}"
                self._judge_gradient("step", key, value, self.truth[key], errors[key])

    def _judge_gradient(self, kind, name, value, exact, torch):
        norm = gradient_norm(name, self.truth.facts["gradient_sizes"]) if kind == "gradient" else None
        value = np.asarray(value, np.float64)
        if self.thin and name != "loss":
            value = projection(name, value)
        found = difference(value, np.asarray(exact), norm)
        measured = judge(kind, "", name, found, torch["error"], self.tolerance, torch["condition"])
        self.findings.gradients.append(measured)

    # Trajectory

    def trajectory(self):
        sigmas = noise_levels(self.plan.steps)
        exact, errors = self.truth["trajectory"], self.errors["trajectory"]
        keep = frozenset(self.errors[f"seed{self.plan.seeds[0]}"]["accumulated"]) if self.thin else None
        for i, x in enumerate(self.candidate.trajectory(self.plan, keep)):
            name = f"sigma {sigmas[i]:.4g}"
            found = difference(x, exact[i])
            self.findings.trajectory.append(judge("trajectory", "", name, found, errors[i], self.tolerance))
        self.findings.facts["psnr"] = psnr(x, exact[-1])
        self.findings.facts["sigmas"] = sigmas


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
