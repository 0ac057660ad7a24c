"""Checkpoints: safetensors files and orbax folders, one network each, with one metadata record.

Reading and writing safetensors needs no jax until arrays are asked for.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.config import check_tree
from jax_edm2.dtypes import DTYPES, not_finite
from jax_edm2.messages import listing
from jax_edm2.orbax_checkpoint import OrbaxCheckpoint, write_orbax
from jax_edm2.record import Record, RecordError
from jax_edm2.remote import is_remote, uploading
from jax_edm2.safetensors_checkpoint import SafetensorsCheckpoint, write_safetensors
from jax_edm2.safetensors_format import FormatError
from jax_edm2.tensors import CheckpointError, Digest, Tensor, check_digest

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jax_edm2.network import Precond


WRITERS = {"safetensors": write_safetensors, "orbax": write_orbax}


def read_record(path: str | os.PathLike) -> Record:
    """The metadata record of a checkpoint: a safetensors file or an orbax folder, whose tensors are not read.

    path: also the URL of a safetensors file, as for `load`.

    Raises: CheckpointError if the checkpoint is missing or broken.
    """
    with opened(path) as stored:
        return stored.record


def load(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    compute_dtype: Any = None,
    sharding: "jax.sharding.Sharding | jax.Device | Mapping | None" = None,
    check: bool = True,
) -> "tuple[Precond, dict]":
    """A converted network and its variables: D = net.apply(variables, x, sigma, class_labels).

    path: of a safetensors file or an orbax folder, or the URL of a safetensors file in a store: s3://bucket/name,
    gs://bucket/name or hf://owner/repo@revision/name. Of that, ranges are read, several at once; where `sharding` gives
    this process parts of tensors, no more than its share, and it cannot be held to the digest. Processes may exchange
    what they read, so all that `sharding` has devices of call this together.
    The variables are a plain tree of the collections `params` and `constants`, whose shapes `expected_tree` gives.
    dtype: of the variables; as stored by default. compute_dtype: of the network's activations; float32 by default.
    sharding: where the variables go, one tensor at a time: a Sharding or Device for all, or a tree of them (FSDP),
    whose leaves may stand for all that is below them. They are committed there. By default they are on JAX's default
    device, uncommitted: they go where what they are used with is. check: hold the tensors, while they are read, to the
    digest in the record. Values that are NaN or infinite are not refused.
    Raises: CheckpointError if the checkpoint is missing, broken or altered, or does not hold the network of its record;
    ValueError if `sharding` does not fit the variables.
    """
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from jax_edm2.network import Precond
    from jax_edm2.placement import placement

    with opened(path) as stored:
        if check:
            check_digest(path, stored.record)
        if stored.record.training is not None:
            raise CheckpointError(
                f"{path}: is a training state: load_training_state reads it, and edm2-convert --weights makes a "
                "checkpoint of one of its networks"
            )
        problems = check_tree(stored.record.config, stored.shapes)
        if problems:
            raise CheckpointError(f"{path}: does not hold the network of its record: " + listing(problems))
        where = placement(sharding, stored.shapes)
        digest = Digest() if check and not stored.in_parts(where) else None
        variables = stored.variables(dtype, where, digest)
        if digest is not None:
            digest.check(path, stored.record)
    net = Precond(stored.record.config, jnp.float32 if compute_dtype is None else compute_dtype)
    return net, unflatten_dict(variables, sep="/")


def save(
    path: str | os.PathLike,
    net: "Precond",
    variables: Mapping[str, Any],
    *,
    record: Record | None = None,
    overwrite: bool = False,
) -> Record:
    """Write a checkpoint: a safetensors file if `path` ends in .safetensors, else an orbax folder.

    path: also the URL of a safetensors file in a store, as for `load`; it is written to this disk first.
    net, variables: as `load` gives them, in any dtype of DTYPES; a folded network cannot be saved.
    record: what else to say of it (`read_record` of the checkpoint that was fine-tuned, say). Its config must be net's.
    If it has a digest, and these are other values, they do not claim its source, but to be fine-tuned from it.
    Returns what was written: that record with the dtype, the digest and the count of values that are not finite.
    Raises: CheckpointError if these are not the network's variables, or something would be lost; FileExistsError
    unless `overwrite`; OSError.
    """
    import numpy as np
    from flax.traverse_util import flatten_dict

    from jax_edm2.network import Precond

    if not isinstance(net, Precond):
        raise CheckpointError(f"{path}: only a Precond can be saved, not a {type(net).__name__}: load gives a Precond")
    if net.folded:
        raise CheckpointError(f"{path}: a folded network is for inference alone; save the variables that it came from")
    config = net.config
    record = Record(config) if record is None else record
    if record.config != config:
        raise CheckpointError(f"{path}: the record describes another network than net.config")
    tensors, count = {}, 0
    arrays = {k: np.asarray(v, order="C") for k, v in flatten_dict(dict(variables), sep="/").items()}
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise CheckpointError(f"{path}: {name} is {array.dtype}; storable are {', '.join(DTYPES)}")
        count += not_finite(array)
        tensors[name] = Tensor(str(array.dtype), array.shape, lambda array=array: [array.tobytes()])  # type: ignore
    problems = check_tree(config, {name: tensor.shape for name, tensor in tensors.items()})
    if problems:
        raise CheckpointError(f"{path}: these are not the variables of the network: " + listing(problems))
    if record.digest and not _are_those_of(record, arrays):
        record = record.of_changed_weights()
    record = dataclasses.replace(record, not_finite=count)
    single = str(path).endswith(".safetensors")
    if is_remote(path):
        if not single:
            raise CheckpointError(f"{path}: in a store a checkpoint is one file: end its name in .safetensors")
        with uploading(os.fspath(path), overwrite=overwrite) as local:
            return write_safetensors(local, tensors, record)
    write = write_safetensors if single else write_orbax
    return write(path, tensors, record, overwrite=overwrite)


def _are_those_of(record: Record, arrays: "Mapping[str, np.ndarray]") -> bool:
    """Whether arrays have the values that a record is about, in its dtype or in a wider one."""
    import numpy as np

    digest = Digest()
    for name, array in arrays.items():
        kind = DTYPES[record.dtype].numpy if record.dtype in DTYPES else array.dtype
        with np.errstate(over="ignore"):
            stored = array.astype(kind, copy=False)
        if kind != array.dtype and stored.astype(array.dtype).tobytes() != array.tobytes():
            return False
        digest.add_array(name, stored)
    return digest.value == record.digest


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[SafetensorsCheckpoint | OrbaxCheckpoint]:
    """A checkpoint's file. What is wrong with its file is said to be wrong with it, now and while it is used."""
    try:
        with contextlib.closing(_open(path)) as stored:
            yield stored
    except RecordError as error:
        raise CheckpointError(f"{path}: {error}; convert the snapshot again") from error
    except FormatError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open(path: str | os.PathLike) -> SafetensorsCheckpoint | OrbaxCheckpoint:
    if is_remote(path):
        return SafetensorsCheckpoint(os.fspath(path))
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    return OrbaxCheckpoint(path) if path.is_dir() else SafetensorsCheckpoint(path)
