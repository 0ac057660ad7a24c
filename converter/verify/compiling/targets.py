"""Accelerators that programs can be compiled for: their published figures, and TARGET as a person writes it."""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..request import VerifyError

DEVICES = Path(__file__).with_name("devices.json")
FORM = re.compile(r"(tpu|gpu):([a-z0-9]{1,16})(?::([0-9x]{1,16}))?")
DIMENSIONS = {"v5e": 2, "v6e": 2, "v5p": 3}  # of a topology; GPUs are in a row


@dataclass(frozen=True)
class Device:
    """kind: a pattern of what JAX calls its device_kind. memory in bytes, bandwidth in bytes a
    second, flops a second by dtype; each of one chip.

    details: what a GPU's description for the compiler takes, and a TPU's name and clock (cycles a second).
    """

    key: str
    platform: str
    name: str
    kind: str
    memory: float
    bandwidth: float
    flops: Mapping[str, float]
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def peak(self, precision: str) -> float:
        """Floating-point operations a second of products of matrices in a precision."""
        return self.flops.get(precision) or self.flops["float32"]


@dataclass(frozen=True)
class Target:
    """text: tpu:v5e:2x2. shape: of the chips, (1,) for one GPU."""

    text: str
    device: Device
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Raises: VerifyError."""
        match = FORM.fullmatch(text)
        known = ", ".join(f"{device.platform}:{key}" for key, device in devices().items())
        if match is None or match[2] not in devices() or devices()[match[2]].platform != match[1]:
            raise VerifyError(f"{text!a:.60} is no target; known are {known}, with a topology such as :2x2 behind it")
        device = devices()[match[2]]
        shape = tuple(int(n) for n in (match[3] or "1").split("x") if n)
        dimensions = DIMENSIONS.get(device.key, 1)
        shape = shape + (1,) * (dimensions - len(shape))
        if len(shape) != dimensions or not all(shape) or math.prod(shape) > 256:
            form = "x".join("2" * dimensions)
            raise VerifyError(
                f"{text!a:.60}: the topology of {device.name} is such as {form}, and has 256 chips at most"
            )
        return cls(text, device, shape)


def device_of(kind: str) -> Device | None:
    """What JAX calls its device_kind, if its figures are known: "NVIDIA H100 80GB HBM3", "TPU v5 lite"."""
    for device in devices().values():
        if re.search(device.kind, kind):
            return device
    return None


@functools.cache
def devices() -> dict[str, Device]:
    common = {"platform", "name", "kind", "memory", "bandwidth", "flops", "source"}
    return {
        key: Device(
            key,
            **{name: found[name] for name in common},
            details={name: value for name, value in found.items() if name not in common},
        )
        for key, found in json.loads(DEVICES.read_text()).items()
    }
