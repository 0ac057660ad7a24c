"""A process that times one framework: it is told a job, and then one way after the other, a line each.

    python -m converter.verify.throughput.serve torch < JOB.json      # then the name of a way for every run of it

It answers every line with one of JSON. Other programs make such a process with ways of their own: see `serve`.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping

from .job import Framework, Job, Run


def framework_of(name: str, job: Job) -> Framework:
    if name == "torch":
        from .torch_worker import Torch

        return Torch(job)
    from .jax_worker import Jax

    return Jax(job)


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
