"""A denoiser of somebody else's under examination: nothing is known of it but what it computes."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_edm2.config import EDM2Config
from jax_edm2.sampling import heun_states
from jax_edm2.settings import noise_levels

from ..cases import Case, Plan, make_case, trajectory_start
from ..outcome import Progress
from ..port import raised
from ..request import Port, VerifyError
from .denoising import Denoising
from .derivative import derivative
from .precision import jax_precision


class Ported:
    """A port, compiled for the cases of a plan.

    Its weights are constants of what is traced. They are handed to the compiled program as arguments, or XLA would
    compute with them while it compiles.
    """

    record = None  # of a checkpoint, which it is not

    def __init__(self, port: Port, config: EDM2Config):
        self.port, self.config = port, config
        self._compiled: dict[Any, Callable[..., Any]] = {}

    @classmethod
    def checked(cls, port: Port, config: EDM2Config, plan: Plan) -> "Ported":
        """One that can be judged by this plan. Raises: VerifyError."""
        candidate = cls(port, config)
        candidate._check(plan)
        return candidate

    def _check(self, plan: Plan):
        """Trace what the plan asks for, without computing. Raises: VerifyError for what cannot be judged."""
        case = make_case(self.config, plan, plan.seeds[0])
        with jax_precision(plan.precision):
            for size in [plan.batch] + [1] * ("trajectory" in plan.checks):
                few = case.first(size)
                self._check_outputs(self._trace(self._outputs, few.x, few.sigma, few.labels), size)
            if "derivative" in plan.checks:
                try:
                    jax.eval_shape(self._derive, *_arrays(case))
                except (Exception, SystemExit) as error:
                    raise VerifyError(
                        f"{self.port.name}: cannot be differentiated: {raised(error)}; "
                        "--checks forward,trajectory leaves that out"
                    ) from None

    def try_to_prepare(self, plan: Plan):
        """Nothing: it is traced already, and it is compiled where it runs."""

    def denoise(self, x, sigma, labels) -> tuple[jax.Array, ...]:
        """(D, logvar), or (D,) of a port that has no logvar; logvar [N, 1, 1, 1]."""
        denoised, *logvar = self._call(self._outputs, x, sigma, labels)
        return (denoised, *(value.reshape(-1, 1, 1, 1) for value in logvar))

    def derive(self, case: Case) -> jax.Array:
        """The gradient by the noise: see `derivative`."""
        return self._call(self._derive, *_arrays(case))

    def trajectory(self, plan: Plan, progress: Progress = lambda stage: None) -> list[np.ndarray]:
        """The states [1, C, H, W] of the Heun sampler, one for each noise level."""
        noise, labels = trajectory_start(self.config, plan.seeds[0])
        count = itertools.count(1)

        def denoise(x, sigma):
            progress(f"trajectory, evaluation {next(count)} of {2 * plan.steps - 1}")
            return self.denoise(x, np.asarray([sigma], np.float32), labels)[0]

        states = heun_states(denoise, jnp.asarray(noise), noise_levels(plan.steps))
        return [np.asarray(x, np.float64) for x in states]

    def _outputs(self, x, sigma, labels) -> tuple[Any, ...]:
        found = self.port.denoise(x, sigma, labels)
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    def _derive(self, images, sigma, noise, labels):
        def denoise(x, sigma, labels):
            return self._outputs(x, sigma, labels)[0]

        return derivative(denoise, self.config.sigma_data, images, sigma, noise, labels)

    def _trace(self, function: Callable, *arguments):
        name = self.port.name
        try:
            return jax.eval_shape(function, *arguments)
        except jax.errors.JAXTypeError as error:
            raise VerifyError(f"{name}: cannot be traced by JAX, as jax.jit does: {raised(error)}") from None
        except (Exception, SystemExit) as error:
            x, sigma, labels = (None if v is None else list(v.shape) for v in arguments)
            given = f"x {x}, sigma {sigma} and labels {labels}"
            raise VerifyError(f"{name}: raised, given {given}, {raised(error)}") from None

    def _check_outputs(self, found: tuple[Any, ...], batch: int):
        """D and perhaps logvar, in shape and dtype. Raises: VerifyError."""
        c, r = self.config.img_channels, self.config.img_resolution
        if not 1 <= len(found) <= 2 or not all(isinstance(v, jax.ShapeDtypeStruct) for v in found):
            raise VerifyError(f"{self.port.name}: returns neither D nor (D, logvar), but {len(found)} values")
        for what, value, shape in zip(("D", "logvar"), found, ((batch, c, r, r), (batch,)), strict=False):
            flat = tuple(value.shape) if what == "D" else (value.size,)
            if flat != shape or value.dtype != jnp.float32:
                raise VerifyError(
                    f"{self.port.name}: returns {what} of {value.dtype} {list(value.shape)}, "
                    f"which should be float32 {list(shape)}"
                )

    def _call(self, function: Callable, *arguments):
        key = function.__name__, str(jax.tree_util.tree_map(jnp.shape, arguments))
        if key not in self._compiled:
            self._compiled[key] = _with_weights_as_arguments(function, *arguments)
        return self._compiled[key](*arguments)


class PortExamination(Denoising):
    """What can be judged of it."""

    candidate: Ported

    def forward(self, name: str, case: Case):
        self.outputs("compiled", name, lambda: self.candidate.denoise(case.x, case.sigma, case.labels))

    def states(self) -> list[np.ndarray]:
        return self.candidate.trajectory(self.plan, progress=self.progress)


def _arrays(case: Case):
    return case.images, case.sigma, case.noise, case.labels


def _with_weights_as_arguments(function: Callable, *arguments) -> Callable[..., Any]:
    """`function` compiled, for arguments of these shapes."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    tree = jax.tree_util.tree_structure(shapes)
    run = jax.jit(lambda weights, *flat: jax.core.eval_jaxpr(traced.jaxpr, weights, *flat))

    def call(*arguments):
        return jax.tree_util.tree_unflatten(tree, run(traced.consts, *jax.tree_util.tree_leaves(arguments)))

    return call
