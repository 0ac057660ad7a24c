"""The ways of running a network in JAX: as loaded, folded, and whole trajectories."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jax_edm2.folding import fold
from jax_edm2.network import Precond
from jax_edm2.sampling import sample
from jax_edm2.settings import Settings

from ...networks import in_memory
from ...opening import open_side
from ..cases import Plan, make_case
from ..jax_side.precision import jax_dtype, jax_precision
from .job import CEILING, FOLDED, LOADED, MEMORY, SAMPLING, Job, Run, process_memory


class Jax:
    """A job's network in JAX. See `job.Framework`.

    net, variables: the network. arguments: x, sigma and labels of the batch, on its device.
    """

    def __init__(self, job: Job):
        self._job = job
        jax.config.update("jax_enable_compilation_cache", False)  # the first run is to show how long compiling takes
        if job.device != "auto":
            jax.config.update("jax_platforms", {"gpu": "cuda"}.get(job.device, job.device))
        with open_side(Path(job.snapshot), job.weights, job.config_from) as snapshot:
            self.net, self.variables = Precond(snapshot.config, jax_dtype(job.precision)), in_memory(snapshot)
            case = make_case(snapshot.config, Plan(batch=job.batch), 0)
        self.arguments = jax.device_put((case.x, case.sigma, case.labels))

    def ways(self):
        return {
            LOADED: lambda: self._evaluating(self.net, self.variables),
            FOLDED: lambda: self._evaluating(*fold(self.net, self.variables)),
            SAMPLING["jax"]: self._sampling,
        }

    def figures(self):
        return {MEMORY: _memory, CEILING: self._ceiling}

    def runner(self, function, *arguments, **kwargs) -> Run:
        """What calls a function once, in the job's precision, and waits for the result."""

        def run():
            with jax_precision(self._job.precision):
                jax.block_until_ready(function(*arguments, **kwargs))

        return run

    def _evaluating(self, net, variables) -> Run:
        return self.runner(jax.jit(net.apply), variables, *self.arguments)

    def _sampling(self) -> Run:
        noise, _, labels = self.arguments
        settings = Settings(num_steps=self._job.steps)
        return self.runner(sample, *fold(self.net, self.variables), noise, labels, settings=settings)

    def _ceiling(self):
        """The best of ten products of square matrices."""
        size = 2048 if jax.default_backend() == "cpu" else 8192
        a = jnp.ones((size, size), jax_dtype(self._job.precision))
        best = 0.0
        with jax_precision(self._job.precision):
            multiply = jax.jit(jnp.matmul)
            multiply(a, a).block_until_ready()
            for _ in range(10):
                started = time.perf_counter()
                multiply(a, a).block_until_ready()
                best = max(best, 2 * size**3 / (time.perf_counter() - started))
        return {"flop_per_second": best}


def _memory():
    found = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in found:
        return {"kind": "device", "peak_bytes": found["peak_bytes_in_use"]}
    return process_memory()
