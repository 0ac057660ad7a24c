"""How fast both frameworks are: the same network, batch and device, in one run.

PyTorch and JAX run in a process each, so that peak memory is their own, and take turns, so that what slows one slows
all. The workers are this file:

    python -m converter.verify.throughput.measure < JOB.json      # then one line per run: the name of a way
"""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter import processes
from converter.errors import ConverterError
from converter.flops import multiply_accumulates
from jax_edm2.config import EDM2Config

EAGER = "PyTorch eager"
WAYS = {"torch": (EAGER, "PyTorch torch.compile"), "jax": ("JAX as loaded", "JAX folded")}
SAMPLING = {"torch": "PyTorch sampling", "jax": "JAX sampling"}  # whole trajectories, of jax_edm2.sample as one program
OTHERS = {"torch": "NVlabs", "jax": "jax-edm2"}  # code that is not ours, from folders that Job names
ROUNDS = 5
STEPS = 32  # of the Heun sampler, for images per second
Progress = Callable[[str], None]
Ways = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Job:
    framework: str  # torch or jax
    snapshot: str
    batch: int
    precision: str
    device: str
    steps: int = STEPS  # of sampling
    nvlabs: str | None = None  # a folder with github.com/NVlabs/edm2
    jax_edm2: str | None = None  # one with github.com/nmboffi/jax-edm2


def measure(
    config: EDM2Config,
    snapshot: str,
    batch: int,
    precision: str,
    device: str,
    progress: Progress,
    ways: Ways | None = None,
    **job: Any,
) -> dict[str, Any]:
    """Time every way, in turns. job: the other fields of Job.

    Returns {batch, steps, rounds, ways: {way: figures or {"unavailable": why}}, memory, ceiling: FLOP/s of JAX's
    matrix products in this precision, or None}. Ratios to PyTorch eager are medians of those of the rounds.
    """
    asked = WAYS if ways is None else ways
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for framework in asked:
            progress(f"starting {framework}")
            worker = _Worker(Job(framework, snapshot, batch, precision, device, **job))
            workers[framework] = stack.enter_context(worker)
        for framework, worker in workers.items():
            for way in asked[framework]:
                progress(way)
                figures[way] = worker.ask(way)  # builds, compiles and runs it once
        running = [(w, way) for f, w in workers.items() for way in asked[f] if "unavailable" not in figures[way]]
        times: dict[str, list[float]] = {way: [] for _, way in running}
        for _ in range(ROUNDS):
            for worker, way in running:
                times[way].append(worker.ask(way)["seconds"] / evaluations(way, **job))
        flop = 2 * multiply_accumulates(config) * batch
        for _, way in running:
            seconds = statistics.median(times[way])
            eager = [b / a for a, b in zip(times[way], times.get(EAGER, []), strict=False)]
            figures[way] = {
                "first_seconds": figures[way]["seconds"],
                "evaluations_per_second": 1 / seconds,
                "images_per_second": batch / seconds / (2 * STEPS - 1),
                "flop_per_second": flop / seconds,
                "of_eager": statistics.median(eager) if eager else None,
                "spread": (max(times[way]) - min(times[way])) / seconds,
            }
        memory = {f: worker.ask("memory") for f, worker in workers.items()}
        ceiling = workers["jax"].ask("ceiling")["flop_per_second"] if "jax" in workers else None
    return {
        "batch": batch,
        "steps": STEPS,
        "rounds": ROUNDS,
        "ways": figures,
        "memory": memory,
        "ceiling": ceiling,
    }


def evaluations(way: str, steps: int = STEPS, **_: Any) -> int:
    """How often a way runs the denoiser each time."""
    return 2 * steps - 1 if way in SAMPLING.values() else 1


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
            processes.module("converter.verify.throughput.measure"),
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
    from converter.verify.torch_side.precision import set_torch, torch_dtype
    from converter.verify.torch_side.reference import Reference

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
            net(*arguments, dtype=torch_dtype(job.precision))
            if cuda:
                torch.cuda.synchronize()

        return run

    def memory():
        if cuda:
            return {"kind": "device", "peak_bytes": torch.cuda.max_memory_allocated()}
        return _process_memory()

    def sampling():
        from torch_ref.sampling import heun, noise_levels

        noise, labels = arguments[0], arguments[2]
        dtype = torch_dtype(job.precision)

        @torch.no_grad()
        def run():
            denoise = lambda x, sigma: reference.net(x, sigma.to(x.device), labels, dtype=dtype)  # noqa: E731
            heun(denoise, noise, noise_levels(job.steps)).cpu()

        return run

    def nvlabs():
        sys.path.insert(0, str(job.nvlabs))
        from training.networks_edm2 import Precond

        with read_snapshot(job.snapshot) as snapshot:
            net = Precond(**{**snapshot.init_kwargs, "use_fp16": job.precision == "float16"})
        if job.precision not in ("float32", "tf32", "float16"):
            raise ValueError(f"has no {job.precision}")
        net.load_state_dict(reference.net.state_dict())
        net = net.to(device).eval().requires_grad_(False)

        @torch.no_grad()
        def run():
            net(*arguments)
            if cuda:
                torch.cuda.synchronize()

        return run

    return {
        EAGER: lambda: runner(reference.net),
        "PyTorch torch.compile": lambda: runner(torch.compile(reference.net)),
        SAMPLING["torch"]: sampling,
        OTHERS["torch"]: nvlabs,
    }, memory


def _jax_ways(job: Job):
    import jax
    import jax.numpy as jnp

    from converter.convert import in_memory
    from converter.snapshot import read_snapshot
    from converter.verify.cases import Plan, make_case
    from converter.verify.jax_side.precision import jax_dtype, jax_precision
    from jax_edm2.folding import fold
    from jax_edm2.network import Precond

    jax.config.update("jax_enable_compilation_cache", False)  # the first run is to show how long compiling takes
    if job.device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(job.device, job.device))
    dtype = jax_dtype(job.precision)
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

    def sampling():
        from jax_edm2.sampling import Settings, sample

        folded, settings = fold(net, variables), Settings(num_steps=job.steps)

        def run():
            with jax_precision(job.precision):
                jax.block_until_ready(sample(*folded, arguments[0], arguments[2], settings=settings))

        return run

    def jax_edm2():
        sys.path.insert(0, str(job.jax_edm2))
        import edm2_net

        config = snapshot.config
        names = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")
        their_net = edm2_net.PrecondUNet(
            config.img_resolution,
            config.img_channels,
            config.label_dim,
            config.sigma_data,
            config.logvar_channels,
            use_bfloat16=dtype == jnp.bfloat16,
            unet_kwargs={name: getattr(config, name) for name in names}
            | {"use_fourier": True, "fourier_bandwidth": 1.0, "block_kwargs": {}},
        )
        if dtype == jnp.float16:
            raise ValueError("has no float16")
        call = jax.jit(lambda variables, x, sigma, labels: their_net.apply(variables, sigma, x, labels, train=False))

        def run():
            with jax_precision(job.precision):
                jax.block_until_ready(call(variables, *arguments))

        return run

    return {
        "JAX as loaded": lambda: runner(net, variables),
        "JAX folded": lambda: runner(*fold(net, variables)),
        SAMPLING["jax"]: sampling,
        OTHERS["jax"]: jax_edm2,
    }, memory


def _ceiling(precision: str) -> dict[str, float]:
    """The best of ten products of square matrices in JAX."""
    import jax
    import jax.numpy as jnp

    from converter.verify.jax_side.precision import jax_dtype, jax_precision

    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), jax_dtype(precision))
    best = 0.0
    with jax_precision(precision):
        multiply = jax.jit(jnp.matmul)
        multiply(a, a).block_until_ready()
        for _ in range(10):
            started = time.perf_counter()
            multiply(a, a).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return {"flop_per_second": best}


def _process_memory():
    return {"kind": "process", "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main():
    job = Job(**json.loads(sys.stdin.readline()))
    ways, memory = _ways(job)
    runners: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        way = line.strip()
        if way == "memory":
            answer = memory()
        elif way == "ceiling":
            answer = _ceiling(job.precision)
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
