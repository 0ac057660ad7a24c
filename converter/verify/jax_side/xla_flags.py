"""XLA's flags, which must be set before JAX starts. Imports no jax."""

import os
import subprocess
from pathlib import Path

from ... import processes


def xla_flags(precision: str, device: str) -> list[str]:
    """The flags that a run wants beside what XLA_FLAGS says already; to be set before JAX starts."""
    flags = []
    if precision in ("float16", "bfloat16"):
        flags.append("--xla_allow_excess_precision=false")
    if device == "gpu" or (device == "auto" and Path("/dev/nvidiactl").exists()):
        flags.append("--xla_gpu_deterministic_ops=true")
    return [flag for flag in flags if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", "")]


def set_xla_flags(flags: list[str]) -> list[str]:
    """Set those flags that this XLA knows, and return the others, on which it aborts: a separate process tries each."""
    unknown = []
    for flag in flags:
        wanted = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        code = "import jax; jax.config.update('jax_platforms', 'cpu'); jax.devices()"
        tried = subprocess.run(processes.python(code), env=processes.environment(XLA_FLAGS=wanted), capture_output=True)
        if tried.returncode == 0:
            os.environ["XLA_FLAGS"] = wanted
        else:
            unknown.append(flag)
    return unknown
