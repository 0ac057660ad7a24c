"""PyTorch's switches for a precision, and the probes that they took effect."""

import os
from typing import Any

import torch

from ..precision import PRECISIONS, PROBE, TERMS, machine, probe_verdict


def torch_dtype(precision: str) -> torch.dtype:
    """Of activations."""
    return getattr(torch, PRECISIONS[precision].dtype)


def set_torch(precision: str, device: str) -> dict[str, Any]:
    """Set every switch, probe, and return both: {name: value}, `probes`, and `problem` (None if all is as asked)."""
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
    value = torch.full((1, TERMS, 16, 16), PROBE, dtype=torch.float32, device=device)
    weight = torch.ones(TERMS, TERMS, 1, 1, dtype=torch.float32, device=device)
    return {
        "a convolution in PyTorch": float(torch.nn.functional.conv2d(value, weight).mean()) / TERMS,
        "a matmul in PyTorch": float((value[0, :, 0].T @ weight[:, :, 0, 0]).mean()) / TERMS,
    }


def torch_facts(device: str) -> dict[str, Any]:
    facts = {**machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}
    if device != "cpu":
        facts |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts
