"""JAX's precision, the probes that it took effect, and what JAX runs on."""

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from jax_edm2 import network

from ..precision import PRECISIONS, PROBE, TERMS, machine, probe_verdict
from . import emulation


def jax_dtype(precision: str) -> Any:
    """Of activations."""
    return getattr(jnp, PRECISIONS[precision].dtype)


@contextlib.contextmanager
def jax_precision(precision: str) -> Iterator[None]:
    """While open, JAX's dots and convolutions compute in `precision`. Covers what is traced inside."""
    with jax.default_matmul_precision(PRECISIONS[precision].matmul):
        yield


def probe_jax() -> dict[str, float]:
    """1 + 2^-12, summed TERMS times, per term, by the functions that the network calls, compiled."""

    @jax.jit
    def probe(value, weight):
        convolved = network.convolve(value, weight, 0)
        return jnp.mean(convolved) / TERMS, jnp.mean(value[0, 0] @ weight[:, :, 0, 0]) / TERMS

    value = jnp.full((1, 16, 16, TERMS), PROBE, jnp.float32)  # of JAX's, whose products are JAX's without jit too
    convolution, matmul = probe(value, jnp.ones((TERMS, TERMS, 1, 1), jnp.float32))
    return {"a convolution in JAX": float(convolution), "a matmul in JAX": float(matmul)}


def jax_switches(precision: str) -> dict[str, Any]:
    """What JAX computes with, as probed: to be called inside `jax_precision`."""
    probes = probe_jax()
    problem = probe_verdict(probes, precision)
    return {
        "jax_default_matmul_precision": PRECISIONS[precision].matmul,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "emulated": emulation.now(),
        "probes": probes,
        "problem": problem,
    }


def jax_facts() -> dict[str, Any]:
    device = jax.devices()[0]
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    facts = {**machine(), **versions, "device": device.device_kind, "platform": device.platform}
    if emulated := emulation.now():
        facts |= {
            "device": f"{device.device_kind}, as a {emulated.upper()} multiplies (emulated)",
            "platform": f"{emulated}, emulated",
        }
    return facts
