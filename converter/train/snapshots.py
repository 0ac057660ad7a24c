"""Snapshots of a training: its averages as networks, in files that the other commands and NVlabs' tools take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_edm2.checkpoint import save
from jax_edm2.dtypes import DTYPES
from jax_edm2.network import Precond
from jax_edm2.record import Record

from ..convert import convert
from ..opening import open_network


def write_snapshots(
    outdir: Path, images: int, net: Precond, averages: Mapping[float, Any], record: Record, dtype: str, pkl: bool
) -> list[Path]:
    """A checkpoint of every average, on the host, named by thousands of images and std; with pkl, a .pkl of it, too.

    dtype: of the weights in the files. Raises: CheckpointError, ConverterError, OSError.
    """
    written = []
    for std, variables in averages.items():
        path = outdir / f"network-snapshot-{images // 1000:07d}-{std:.3f}.safetensors"
        with np.errstate(over="ignore"):  # the record counts what is not finite
            stored = jax.tree_util.tree_map(lambda value: value.astype(DTYPES[dtype].numpy), variables)
        save(path, net, stored, record=record, overwrite=True)
        written.append(path)
        if pkl:
            with open_network(path) as weights:
                convert(weights, path.with_suffix(".pkl"), format="pkl", overwrite=True)
            written.append(path.with_suffix(".pkl"))
    return written
