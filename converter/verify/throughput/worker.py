"""The process that times one framework (`serve`), as its parent sees it."""

import contextlib
import json
import subprocess
from dataclasses import asdict
from typing import Any

from ... import processes
from ...errors import ConverterError
from .job import Job

MODULE = "jax_edm2.converter.verify.throughput.serve"


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
