"""A command of ours as its user meets it: a process with arguments, output and an exit code."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jax_edm2.converter.processes import ROOT
from tests.support import children


@dataclass(frozen=True)
class Tool:
    """name: as it calls itself. command: what starts it."""

    name: str
    command: list[str]

    def start(self, *arguments, env=None, **kwargs) -> subprocess.Popen:
        """env: variables beside this process's own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
        return subprocess.Popen([*self.command, *map(str, arguments)], env=environment, **pipes)

    def run(self, *arguments, **kwargs) -> subprocess.CompletedProcess:
        """A process forked where the imports are done; with an environment or pipes of its own, one that starts new."""
        if kwargs:
            process = self.start(*arguments, **kwargs)
            stdout, stderr = process.communicate()
            return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, name) for name in ("stdout", "stderr")]
            command = (self.name, *map(str, arguments))
            process = children.start(children.called, command, os.getcwd(), dict(os.environ), *map(str, outputs))
            process.join()
            stdout, stderr = (output.read_text() for output in outputs)
            return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)

    def fails(self, *arguments, text, **kwargs):
        """Exit code 2, and one line on standard error that says `text`."""
        result = self.run(*arguments, **kwargs)
        assert result.returncode == 2, result
        assert result.stdout == ""
        assert result.stderr.startswith(f"{self.name}: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert text in result.stderr
