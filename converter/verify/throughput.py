"""How fast both frameworks are: the same network, batch and device, in one run.

PyTorch and JAX run in a process each, so that peak memory is their own, and take turns, so that what slows one slows
all. The workers are this file:

    python -m converter.verify.throughput < JOB.json      # then one line per run: the name of a way
"""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConverterError
from converter.flops import multiply_accumulates
from jax_edm2.config import EDM2Config

WAYS = {"torch": ("PyTorch eager", "PyTorch torch.compile"), "jax": ("JAX as loaded", "JAX folded")}
ROUNDS = 5
STEPS = 32  # of the Heun sampler, for images per second
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    framework: str  # torch or jax
    snapshot: str
    batch: int
    precision: str
    device: str


def measure(
    config: EDM2Config, snapshot: str, batch: int, precision: str, device: str, progress: Progress
) -> dict[str, Any]:
    """Time every way. Returns {"batch", "ways": {way: figures or {"unavailable": why}}}."""
    ways: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for framework in WAYS:
            progress(f"starting {framework}")
            workers[framework] = stack.enter_context(_Worker(Job(framework, snapshot, batch, precision, device)))
        for framework, worker in workers.items():
            for way in WAYS[framework]:
                progress(way)
                ways[way] = worker.ask(way)  # builds, compiles and runs it once
        running = [(w, way) for f, w in workers.items() for way in WAYS[f] if "unavailable" not in ways[way]]
        times: dict[str, list[float]] = {way: [] for _, way in running}
        for _ in range(ROUNDS):
            for worker, way in running:
                times[way].append(worker.ask(way)["seconds"])
        flop = 2 * multiply_accumulates(config) * batch
        for _, way in running:
            seconds = statistics.median(times[way])
            ways[way] = {
                "first_seconds": ways[way]["seconds"],
                "evaluations_per_second": 1 / seconds,
                "images_per_second": batch / seconds / (2 * STEPS - 1),
                "flop_per_second": flop / seconds,
                "spread": (max(times[way]) - min(times[way])) / seconds,
            }
        memory = {f: worker.ask("memory") for f, worker in workers.items()}
    return {"batch": batch, "steps": STEPS, "rounds": ROUNDS, "ways": ways, "memory": memory}


def sweep(config: EDM2Config, snapshot: str, precision: str, device: str, progress: Progress) -> list[dict[str, Any]]:
    """`measure` for batches of 1, 2, 4, ... until memory ends."""
    results: list[dict[str, Any]] = []
    batch = 1
    while True:
        try:
            found = measure(config, snapshot, batch, precision, device, progress)
        except WorkerDied as error:
            return [*results, {"batch": batch, "ended": str(error)}]
        results.append(found)
        if any("memory" in figures.get("unavailable", "").lower() for figures in found["ways"].values()):
            return results
        if device == "cpu" or found["memory"]["torch"]["kind"] == "process":
            peak = sum(entry["peak_bytes"] for entry in found["memory"].values())
            if 2 * peak > _memory():
                return [
                    *results,
                    {"batch": 2 * batch, "ended": f"would need more than this machine's {_memory() / 1e9:.0f} GB"},
                ]
        batch *= 2


def _memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) * 1024
    return 2**62


class WorkerDied(ConverterError):  # noqa: N818
    """A throughput worker that ended by itself, for want of memory most likely."""


class _Worker:
    def __init__(self, job: Job):
        self._job = job
        self._process = subprocess.Popen(
            [sys.executable, "-m", "converter.verify.throughput"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
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
        self._send(line)
        answer = self._process.stdout.readline()  # type: ignore[union-attr]
        if not answer:
            code = self._process.wait()
            raise WorkerDied(
                f"throughput: the {self._job.framework} process ended ({code}) at batch {self._job.batch}; "
                "out of memory? Try a smaller --batch"
            )
        return json.loads(answer)


# In the worker


def _ways(job: Job) -> tuple[dict[str, Callable[[], Callable[[], None]]], Callable[[], dict[str, Any]]]:
    return _torch_ways(job) if job.framework == "torch" else _jax_ways(job)


def _torch_ways(job: Job):
    import torch

    from converter.snapshot import read_snapshot
    from converter.verify.cases import Plan, make_case
    from converter.verify.precision import set_torch
    from converter.verify.reference import DTYPES, Reference

    torch.use_deterministic_algorithms(False)
    cuda = job.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    set_torch(job.precision, device)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    with read_snapshot(job.snapshot) as snapshot:
        reference = Reference(snapshot, "torch_ref", device)
        reference.lower()
        case = make_case(snapshot.config, Plan(batch=job.batch), 0)
    put = lambda value: None if value is None else torch.from_numpy(value).to(device)  # noqa: E731
    arguments = put(case.x), put(case.sigma), put(case.labels)

    def runner(net):
        @torch.no_grad()
        def run():
            net(*arguments, dtype=DTYPES[job.precision])
            if cuda:
                torch.cuda.synchronize()

        return run

    def memory():
        if cuda:
            return {"kind": "device", "peak_bytes": torch.cuda.max_memory_allocated()}
        return _process_memory()

    return {
        "PyTorch eager": lambda: runner(reference.net),
        "PyTorch torch.compile": lambda: runner(torch.compile(reference.net)),
    }, memory


def _jax_ways(job: Job):
    import jax
    import jax.numpy as jnp

    from converter.convert import in_memory
    from converter.snapshot import read_snapshot
    from converter.verify.cases import Plan, make_case
    from converter.verify.precision import jax_precision
    from jax_edm2.folding import fold
    from jax_edm2.network import Precond

    jax.config.update("jax_enable_compilation_cache", False)  # the first run is to show how long compiling takes
    if job.device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(job.device, job.device))
    dtype = jnp.dtype({"float16": "float16", "bfloat16": "bfloat16"}.get(job.precision, "float32"))
    with read_snapshot(job.snapshot) as snapshot:
        net, variables = Precond(snapshot.config, dtype), in_memory(snapshot)
        case = make_case(snapshot.config, Plan(batch=job.batch), 0)
    arguments = jax.device_put((case.x, case.sigma, case.labels))

    def runner(net, variables):
        denoise = jax.jit(net.apply)

        def run():
            with jax_precision(job.precision):
                jax.block_until_ready(denoise(variables, *arguments))

        return run

    def memory():
        found = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in found:
            return {"kind": "device", "peak_bytes": found["peak_bytes_in_use"]}
        return _process_memory()

    return {
        "JAX as loaded": lambda: runner(net, variables),
        "JAX folded": lambda: runner(*fold(net, variables)),
    }, memory


def _process_memory():
    return {"kind": "process", "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main():
    ways, memory = _ways(Job(**json.loads(sys.stdin.readline())))
    runners: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        way = line.strip()
        if way == "memory":
            answer = memory()
        else:
            started = time.perf_counter()
            try:
                if way not in runners:
                    runners[way] = ways[way]()
                runners[way]()
                answer = {"seconds": time.perf_counter() - started}
            except Exception as error:
                answer = {"unavailable": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
