"""The precision that both frameworks compute in: switches, and numeric probes that they took effect.

The probes multiply by 1 + 2^-12, which float32 holds and TF32 and bfloat16 round to 1.
"""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from converter import processes

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
TERMS = 32
PROBE = 1 + 2.0**-12


def probe_verdict(values: dict[str, float], precision: str) -> str | None:
    """What is wrong with the probes' results (by operation, per term), or None if the precision is in effect."""
    if precision in ("float16", "bfloat16"):
        return None  # the arrays' own dtype
    for operation, value in values.items():
        kept = abs(value - PROBE) < 2.0**-16
        if precision == "float32" and not kept:
            return f"{operation} computes 1 + 2^-12 as {value:.7f}: float32 is not strict (TF32 or bfloat16 is on)"
        if precision == "tf32" and kept:
            return f"{operation} keeps 1 + 2^-12: TF32 is not in effect"
    return None


# PyTorch


def set_torch(precision: str, device: str) -> dict[str, Any]:
    """Set every switch, probe, and return both: {name: value}, `probes`, and `problem` (None if all is as asked)."""
    import torch

    mode = "tf32" if precision == "tf32" else "ieee"
    switches: dict[str, Any] = {}
    conv = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(conv, "fp32_precision"):  # torch 2.9; never mixed with the older switches
        conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = mode  # type: ignore[union-attr]
        switches["cudnn.conv.fp32_precision"] = switches["cuda.matmul.fp32_precision"] = mode
    else:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        switches["cudnn.allow_tf32"] = switches["cuda.matmul.allow_tf32"] = mode == "tf32"
    for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        setattr(torch.backends.cuda.matmul, name, False)
        switches[f"cuda.matmul.{name}"] = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True)
    switches |= {"cudnn.benchmark": False, "cudnn.deterministic": True, "use_deterministic_algorithms": True}
    switches["CUBLAS_WORKSPACE_CONFIG"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    probes = probe_torch(device)
    return {**switches, "probes": probes, "problem": probe_verdict(probes, precision)}


def probe_torch(device: str) -> dict[str, float]:
    """1 + 2^-12, summed TERMS times by a convolution and by a matmul in float32, per term."""
    import torch

    value = torch.full((1, TERMS, 16, 16), PROBE, dtype=torch.float32, device=device)
    weight = torch.ones(TERMS, TERMS, 1, 1, dtype=torch.float32, device=device)
    return {
        "a convolution in PyTorch": float(torch.nn.functional.conv2d(value, weight).mean()) / TERMS,
        "a matmul in PyTorch": float((value[0, :, 0].T @ weight[:, :, 0, 0]).mean()) / TERMS,
    }


def torch_facts(device: str) -> dict[str, Any]:
    import torch

    facts = {**_machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}
    if device != "cpu":
        facts |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


# JAX

MATMUL_PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "float16": "highest", "bfloat16": "highest"}


@contextlib.contextmanager
def jax_precision(precision: str) -> Iterator[None]:
    """While open, JAX's dots and convolutions compute in `precision`. Covers what is traced inside."""
    import jax

    with jax.default_matmul_precision(MATMUL_PRECISION[precision]):
        yield


def probe_jax() -> dict[str, float]:
    """As `probe_torch`, by the functions that the network calls, compiled."""
    import jax
    import jax.numpy as jnp

    from jax_edm2 import network

    @jax.jit
    def probe(value, weight):
        convolved = network.convolve(value, weight, 0)
        return jnp.mean(convolved) / TERMS, jnp.mean(value[0, 0] @ weight[:, :, 0, 0]) / TERMS

    value = np.full((1, 16, 16, TERMS), PROBE, np.float32)
    convolution, matmul = probe(value, np.ones((TERMS, TERMS, 1, 1), np.float32))
    return {"a convolution in JAX": float(convolution), "a matmul in JAX": float(matmul)}


def jax_switches(precision: str) -> dict[str, Any]:
    """What JAX computes with, as probed: to be called inside `jax_precision`."""
    probes = probe_jax()
    problem = probe_verdict(probes, precision)
    return {
        "jax_default_matmul_precision": MATMUL_PRECISION[precision],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "probes": probes,
        "problem": problem,
    }


def jax_facts() -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    return {**_machine(), **versions, "device": device.device_kind, "platform": device.platform}


def xla_flags(precision: str, device: str) -> list[str]:
    """The flags that a run wants beside what XLA_FLAGS says already; to be set before JAX starts."""
    flags = []
    if precision in ("float16", "bfloat16"):
        flags.append("--xla_allow_excess_precision=false")
    if device == "gpu" or (device == "auto" and Path("/dev/nvidiactl").exists()):
        flags.append("--xla_gpu_deterministic_ops=true")
    return [flag for flag in flags if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", "")]


def set_xla_flags(flags: list[str]) -> list[str]:
    """Set those flags that this XLA knows, and return the others: it aborts on them, as a process of its own shows."""
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


def _machine() -> dict[str, Any]:
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
