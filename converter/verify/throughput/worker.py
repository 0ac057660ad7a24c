"""A process that times one framework: it is told a job, and then one way after the other, a line each.

    python -m converter.verify.throughput.worker torch < JOB.json      # then the name of a way for every run of it

It answers every line with one of JSON. Other programs make such a process with ways of their own: see `serve`.
"""

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from converter import processes
from converter.errors import ConverterError

MODULE = "converter.verify.throughput.worker"
EAGER, COMPILED = "PyTorch eager", "PyTorch torch.compile"
LOADED, FOLDED = "JAX as loaded", "JAX folded"
SAMPLING = {"torch": "PyTorch sampling", "jax": "JAX sampling"}  # whole trajectories, of jax_edm2.sample as one program
MEMORY, CEILING = "memory", "ceiling"  # figures: what may be asked for besides ways
STEPS = 32  # of the Heun sampler

Run = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What is timed, the same for both frameworks."""

    snapshot: str
    batch: int
    precision: str
    device: str
    steps: int = STEPS  # of sampling


class WorkerDied(ConverterError):  # noqa: N818
    """A throughput worker that ended by itself, for want of memory most likely."""


class Worker:
    """The process of one framework, as its parent sees it. Use it in a `with` statement.

    command: what starts the process, to which the framework's name is added.
    """

    def __init__(self, framework: str, job: Job, command: list[str] | None = None):
        self._framework, self._job = framework, job
        self._process = subprocess.Popen(
            [*(command or processes.module(MODULE)), framework],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=processes.environment(),
        )  # fmt: skip

    def __enter__(self):
        self._send(json.dumps(asdict(self._job)))
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def _send(self, line: str):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line. Raises: WorkerDied."""
        self._send(line)
        answer = self._process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            code = self._process.wait()
            raise WorkerDied(
                f"throughput: the {self._framework} process ended ({code}) at batch {self._job.batch}; "
                "out of memory? Try a smaller --batch"
            )
        return json.loads(answer)


# In the process


class Framework(Protocol):
    """One framework with a job's network and inputs on its device."""

    def ways(self) -> dict[str, Callable[[], Run]]:
        """By name: what builds a way of running the network, and returns what runs it once."""

    def figures(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """MEMORY: {kind: device or process, peak_bytes}; CEILING: {flop_per_second} of products of matrices."""


def framework_of(name: str, job: Job) -> Framework:
    if name == "torch":
        from converter.verify.throughput.torch_worker import Torch

        return Torch(job)
    from converter.verify.throughput.jax_worker import Jax

    return Jax(job)


def process_memory() -> dict[str, Any]:
    return {"kind": "process", "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def serve(name: str, more: Callable[[Framework, Job], Mapping[str, Callable[[], Run]]] = lambda _framework, _job: {}):
    """Answer every line of standard input. more: ways beside the framework's own."""
    job = Job(**json.loads(sys.stdin.readline()))
    framework = framework_of(name, job)
    ways, figures = {**framework.ways(), **more(framework, job)}, framework.figures()
    runners: dict[str, Run] = {}
    for line in sys.stdin:
        asked = line.strip()
        if asked in figures:
            answer = figures[asked]()
        else:
            started = time.perf_counter()
            try:
                if asked not in runners:
                    runners[asked] = ways[asked]()
                runners[asked]()
                answer = {"seconds": time.perf_counter() - started}
            except Exception as error:
                answer = {"unavailable": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
