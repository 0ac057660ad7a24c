"""The ways of running a network in PyTorch: eager, compiled, and whole trajectories."""

from pathlib import Path

import torch

from jax_edm2.torch_ref.sampling import heun, noise_levels

from ...opening import open_side
from ..cases import Plan, make_case
from ..torch_side.precision import set_torch, torch_dtype
from ..torch_side.reference import Reference
from .job import COMPILED, EAGER, MEMORY, SAMPLING, Job, Run, process_memory


class Torch:
    """A job's network in PyTorch. See `job.Framework`.

    reference: the network. arguments: x, sigma and labels of the batch, on its device.
    """

    def __init__(self, job: Job):
        self._job = job
        self._cuda = job.device != "cpu" and torch.cuda.is_available()
        self.device = "cuda" if self._cuda else "cpu"
        set_torch(job.precision, self.device)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        with open_side(Path(job.snapshot), job.weights, job.config_from) as snapshot:
            self.reference = Reference(snapshot, "torch_ref", self.device)
            self.reference.lower()
            case = make_case(snapshot.config, Plan(batch=job.batch), 0)
        self.arguments = tuple(
            None if value is None else torch.from_numpy(value).to(self.device)
            for value in (case.x, case.sigma, case.labels)
        )

    def ways(self):
        return {
            EAGER: lambda: self._evaluating(self.reference.net),
            COMPILED: lambda: self._evaluating(torch.compile(self.reference.net)),
            SAMPLING["torch"]: self._sampling,
        }

    def figures(self):
        return {MEMORY: self._memory}

    def runner(self, net, **kwargs) -> Run:
        """What evaluates a network once, and waits for the result."""

        @torch.no_grad()
        def run():
            net(*self.arguments, **kwargs)
            if self._cuda:
                torch.cuda.synchronize()

        return run

    def _evaluating(self, net) -> Run:
        return self.runner(net, dtype=torch_dtype(self._job.precision))

    def _sampling(self) -> Run:
        noise, _, labels = self.arguments
        dtype = torch_dtype(self._job.precision)

        @torch.no_grad()
        def run():
            denoise = lambda x, sigma: self.reference.net(x, sigma.to(x.device), labels, dtype=dtype)  # noqa: E731
            heun(denoise, noise, noise_levels(self._job.steps)).cpu()

        return run

    def _memory(self):
        if self._cuda:
            return {"kind": "device", "peak_bytes": torch.cuda.max_memory_allocated()}
        return process_memory()
