"""How fast both frameworks are: the same network, batch and device, in one run.

PyTorch and JAX run in a process each (`worker`), so that peak memory is their own, and take turns, so that what slows
one slows all.
"""

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax_edm2.config import EDM2Config

from ...flops import multiply_accumulates
from ..outcome import Progress
from .job import CEILING, COMPILED, EAGER, FOLDED, LOADED, MEMORY, SAMPLING, STEPS, Job
from .worker import Worker, WorkerDied

WAYS = {"torch": (EAGER, COMPILED), "jax": (LOADED, FOLDED)}
ROUNDS = 5
Ways = Mapping[str, Sequence[str]]


def measure(
    config: EDM2Config,
    job: Job,
    progress: Progress,
    *,
    ways: Ways | None = None,
    rounds: int = ROUNDS,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Time every way, in turns. ways: by framework; WAYS, if not given. command: see `Worker`.

    Returns {batch, steps, rounds, ways: {way: figures or {"unavailable": why}}, memory, ceiling: FLOP/s of JAX's
    matrix products in this precision, or None}. Ratios to PyTorch eager are medians of those of the rounds.
    """
    asked = WAYS if ways is None else ways
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for framework in asked:
            progress(f"starting {framework}")
            workers[framework] = stack.enter_context(Worker(framework, job, command))
        for framework, worker in workers.items():
            for way in asked[framework]:
                progress(way)
                figures[way] = worker.ask(way)  # builds, compiles and runs it once
        running = [(w, way) for f, w in workers.items() for way in asked[f] if "unavailable" not in figures[way]]
        times: dict[str, list[float]] = {way: [] for _, way in running}
        for _ in range(rounds):
            for worker, way in running:
                times[way].append(worker.ask(way)["seconds"] / _evaluations(way, job))
        flop = 2 * multiply_accumulates(config) * job.batch
        for _, way in running:
            seconds = statistics.median(times[way])
            eager = [b / a for a, b in zip(times[way], times.get(EAGER, []), strict=False)]
            figures[way] = {
                "first_seconds": figures[way]["seconds"],
                "evaluations_per_second": 1 / seconds,
                "images_per_second": job.batch / seconds / (2 * STEPS - 1),
                "flop_per_second": flop / seconds,
                "of_eager": statistics.median(eager) if eager else None,
                "spread": (max(times[way]) - min(times[way])) / seconds,
            }
        memory = {f: worker.ask(MEMORY) for f, worker in workers.items()}
        ceiling = workers["jax"].ask(CEILING)["flop_per_second"] if "jax" in workers else None
    return {
        "batch": job.batch,
        "steps": STEPS,
        "rounds": rounds,
        "ways": figures,
        "memory": memory,
        "ceiling": ceiling,
    }


def _evaluations(way: str, job: Job) -> int:
    """How often a way runs the denoiser each time."""
    return 2 * job.steps - 1 if way in SAMPLING.values() else 1


def sweep(config: EDM2Config, job: Job, progress: Progress) -> list[dict[str, Any]]:
    """`measure` a job with batches of 1, 2, 4, ... until memory ends."""
    results: list[dict[str, Any]] = []
    batch = 1
    while True:
        try:
            found = measure(config, replace(job, batch=batch), progress)
        except WorkerDied as error:
            return [*results, {"batch": batch, "ended": str(error)}]
        results.append(found)
        if any("memory" in figures.get("unavailable", "").lower() for figures in found["ways"].values()):
            return results
        if job.device == "cpu" or found["memory"]["torch"]["kind"] == "process":
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
