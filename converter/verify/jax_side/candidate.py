"""A JAX network under examination, with the compiled functions that this takes. Needs no torch."""

import contextlib
import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.checkpoint import load, read_record
from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.folding import fold
from jax_edm2.network import Precond
from jax_edm2.record import Record
from jax_edm2.sampling import heun_states
from jax_edm2.settings import noise_levels
from jax_edm2.state_layout import NET
from jax_edm2.training import denoising_loss

from ...convert import describe
from ...memory import make_room
from ...networks import in_memory
from ...opening import is_checkpoint, is_training_state, open_side
from ...train.states import read_training
from ...weights import Weights
from ..cases import HELD, STEP, Case, Plan, make_case, trajectory_start
from ..outcome import Progress
from ..taps import Tap
from . import emulation
from .derivative import derivative
from .precision import jax_dtype, jax_precision
from .taps import TappedNetwork
from .training import Start
from .unread import Unread, shapes, stored, unread


class Candidate:
    """A network and its variables, with the compiled functions that examining it takes.

    variables: arrays; or some of them `Unread`, of a network that is too large to be held beside something else.
    Blocks are then given theirs one after the other, and the network as a whole for as long as it runs.
    config: the architecture that is expected of it. path, record: of the checkpoint, if it is one's. start: gives the
    whole training state that it is the network of.
    """

    def __init__(
        self,
        net: Precond,
        variables: Any,
        config: EDM2Config,
        path: Path | None = None,
        record: Record | None = None,
        start: Start | None = None,
    ):
        self.net, self.variables, self.config = net, variables, config
        self.path, self.record, self.start = path, record, start
        self.tapped = TappedNetwork(net, variables, config)
        self._compiled: dict[Any, Any] = {}
        self._trajectory: list[np.ndarray] | None = None

        def denoise(variables, x, sigma, labels):
            return net.apply(variables, x, sigma, labels, return_logvar=True)

        def differentiate(variables, images, sigma, noise, labels):
            def loss(params, noise):
                return jnp.mean(denoising_loss(net, {**variables, "params": params}, images, sigma, noise, labels))

            return jax.value_and_grad(loss, (0, 1))(variables["params"], noise)

        def derive(variables, images, sigma, noise, labels):
            def run(x, sigma, labels):
                return net.apply(variables, x, sigma, labels)

            return derivative(run, config.sigma_data, images, sigma, noise, labels)

        self._functions = {
            "denoise": jax.jit(denoise),
            "differentiate": jax.jit(differentiate),
            "derive": jax.jit(derive),
        }

    def denoise(self, x, sigma, labels) -> tuple[jax.Array, jax.Array]:
        """(D, logvar) of the network compiled as a whole."""
        return self._call("denoise", self._whole(), x, sigma, labels)

    def denoise_folded(self, x, sigma, labels) -> tuple[jax.Array, jax.Array]:
        """The same of the network that samplers use, whose weights are prepared once.

        Winograd's are 16/9 of those that are stored: where these are `Unread`, images come one by one, to save room.
        """
        if large := self._has_unread():
            self._compiled = {name: call for name, call in self._compiled.items() if name == "folded"}
        self._make_room()
        net, variables = fold(self.net, self.variables, emulation.platform())
        denoise = self._compiled.setdefault("folded", jax.jit(partial(net.apply, return_logvar=True)))
        count = len(x) if large else 1
        parts = ([None] * count if v is None else np.split(np.asarray(v), count) for v in (x, sigma, labels))
        denoised, logvar = zip(*(denoise(variables, *part) for part in zip(*parts, strict=True)), strict=True)
        return jnp.concatenate(denoised), jnp.concatenate(logvar)

    def differentiate(self, variables, case: Case):
        """(loss, (gradients of the parameters, gradient of the noise)) of the mean EDM2 loss."""
        return self._call("differentiate", variables, case.images, case.sigma, case.noise, case.labels)

    def derive(self, case: Case) -> jax.Array:
        """The gradient by the noise: see `derivative`."""
        return self._call("derive", self._whole(), case.images, case.sigma, case.noise, case.labels)

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

    def trajectory(
        self, plan: Plan, keep: frozenset[str] | None = None, progress: Progress = lambda stage: None
    ) -> list[np.ndarray]:
        """The states [1, C, H, W] of the Heun sampler, one for each noise level; computed once.

        keep: use what `denoise_and_keep` has compiled for these taps and the plan's batch. progress: is told of every
        evaluation.
        """
        if self._trajectory is None:
            noise, labels = trajectory_start(self.config, plan.seeds[0])
            variables, count = self._whole(), itertools.count(1)

            def denoise(x, sigma):
                progress(f"trajectory, evaluation {next(count)} of {2 * plan.steps - 1}")
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
        with jax_precision(plan.precision):
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

    def try_to_prepare(self, plan: Plan):
        """What fails here fails again when it is examined."""
        with contextlib.suppress(Exception):
            self.prepare(plan)

    def _whole(self) -> Any:
        """All variables, for the network as a whole."""
        self._make_room()
        return stored(self.variables)

    def _make_room(self):
        """Of a large network, everything goes that can be made again: compiled programs take 0.5 GB at XXL."""
        if self._has_unread():
            jax.clear_caches()
            make_room()

    def _has_unread(self) -> bool:
        return any(isinstance(leaf, Unread) for leaf in jax.tree_util.tree_leaves(self.variables))


def load_candidate(
    config: EDM2Config,
    precision: str,
    *,
    checkpoint: Path | None = None,
    snapshot: Weights | None = None,
    held: float = HELD,
    choice: tuple[str | None, str | None] = (None, None),
) -> Candidate:
    """The network of the checkpoint, or of the snapshot converted in memory, or left where it is if it is large.

    config: the architecture that is expected of it. held: bytes of weights above which it is large. choice: for
    `open_side`, where the checkpoint is a training state or a snapshot.
    """
    large = 4 * sum(map(math.prod, expected_tree(config).values())) > held
    if checkpoint is not None and is_checkpoint(checkpoint) and not is_training_state(checkpoint):
        stored_dtype = None if large else jnp.float32
        net, variables = load(checkpoint, dtype=stored_dtype, compute_dtype=jax_dtype(precision))
        return Candidate(net, variables, config, checkpoint, read_record(checkpoint))
    if checkpoint is not None:
        with open_side(checkpoint, *choice) as weights:
            net, variables = Precond(weights.config, jax_dtype(precision)), in_memory(weights)
            return Candidate(net, variables, config, checkpoint, describe(weights), _start(checkpoint, choice))
    assert snapshot is not None
    net = Precond(config, jax_dtype(precision))
    start = None if snapshot.file is None else _start(snapshot.path, choice)
    return Candidate(net, unread(snapshot) if large else in_memory(snapshot), config, start=start)


def _start(path: Path, choice: tuple[str | None, str | None]) -> Start | None:
    """The whole training state, where what was chosen of the file is the network that it goes on with."""
    part, config_from = choice
    if part != NET or not is_training_state(path):
        return None
    return partial(read_training, path, place=lambda _tree: None, config_from=config_from)
