"""The precisions that both frameworks compute in, the verdict on numeric probes, and what is told of a machine.

The probes multiply by 1 + 2^-12, which float32 holds and TF32 and bfloat16 round to 1.
"""

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TERMS = 32
PROBE = 1 + 2.0**-12


@dataclass(frozen=True)
class Precision:
    """What both frameworks are told of a precision."""

    dtype: str  # of activations, by its name in torch and in jax.numpy
    matmul: str  # JAX's name for what dots and convolutions of float32 compute in
    rounding: float  # relative, of one operation, about: what condition numbers are measured with


PRECISIONS = {
    "float32": Precision("float32", "highest", 1e-7),
    "tf32": Precision("float32", "tensorfloat32", 3e-4),
    "high": Precision("float32", "high", 4e-6),  # on a TPU three products of bfloat16, on a GPU TF32
    "default": Precision("float32", "default", 2e-3),  # on a TPU one product of bfloat16, on a GPU TF32
    "float16": Precision("float16", "highest", 3e-4),
    "bfloat16": Precision("bfloat16", "highest", 2e-3),
}


def probe_verdict(values: dict[str, float], precision: str) -> str | None:
    """What is wrong with the probes' results (by operation, per term), or None if the precision is in effect."""
    if precision not in ("float32", "tf32"):
        return None  # the arrays' own dtype, or what JAX makes of it
    for operation, value in values.items():
        kept = abs(value - PROBE) < 2.0**-16
        if precision == "float32" and not kept:
            return f"{operation} computes 1 + 2^-12 as {value:.7f}: float32 is not strict (TF32 or bfloat16 is on)"
        if precision == "tf32" and kept:
            return f"{operation} keeps 1 + 2^-12: TF32 is not in effect"
    return None


def machine() -> dict[str, Any]:
    """The facts that both sides record of the machine that they run on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
