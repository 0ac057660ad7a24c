"""Orbax folders of one network, with the record as custom metadata.

Orbax reads its folder by itself. What it would parse without bounds is looked at before, and whatever it raises or logs
about a folder that is damaged becomes one error.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2 import strict_json
from jax_edm2.dtypes import DTYPES
from jax_edm2.files import whole_or_nothing
from jax_edm2.messages import printable
from jax_edm2.record import KEY, Record, tensors_digest
from jax_edm2.tensors import CheckpointError, Digest, Tensor, refuse_to_lose, stored_dtype

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jax_edm2.placement import Placement

MARK = "_CHECKPOINT_METADATA"  # a file that every orbax checkpoint has
THREADS = 2  # that read and hash, or write
MOST_FILES = 10_000
MOST_JSON = 4 * 2**20  # bytes of a file of metadata; XXL's largest has 70,000


class OrbaxCheckpoint:
    """A folder: its record, its shapes by path, and its variables when they are asked for."""

    def __init__(self, path: Path):
        """Raises: CheckpointError, RecordError."""
        self._ocp = orbax()
        from flax.traverse_util import flatten_dict

        self.path = path.absolute()  # orbax wants it so
        _look_at(path)
        with _quietly(f"{path}: is no orbax checkpoint of this project"), self._ocp.StandardCheckpointer() as reader:
            metadata = reader.metadata(self.path)
            if metadata.item_metadata is None:
                raise CheckpointError(f"{path}: is damaged: orbax finds no tensors in it; convert the snapshot again")
            self._leaves = flatten_dict(dict(metadata.item_metadata.tree), sep="/")
            self.shapes = {name: tuple(map(int, leaf.shape)) for name, leaf in self._leaves.items()}
            self.dtypes = {name: str(leaf.dtype) for name, leaf in self._leaves.items()}
            custom: Any = metadata.custom_metadata
            if not isinstance(custom, dict) or not isinstance(custom.get(KEY), str):
                raise CheckpointError(f"{path}: is no checkpoint of this project: it has no '{KEY}' metadata")
            text = custom[KEY]
        for name, dtype in self.dtypes.items():
            if dtype not in DTYPES:
                known = ", ".join(DTYPES)
                raise CheckpointError(f"{path}: {printable(name[:200])} is {dtype}; weights are {known}")
        self.record = Record.from_json(text)

    def in_parts(self, where: "Placement") -> bool:
        """Are there tensors of which this process has parts alone? All are brought together, to be hashed."""
        return False

    def variables(self, dtype: Any, where: "Placement", digest: Digest | None) -> "dict[str, jax.Array]":
        """All variables by path, as `dtype` (None: as stored), on the devices of `where`; hashed into `digest`.

        What goes to the default device is read to the host first, as a whole. Of the rest, one tensor at a time is
        brought together there, to be hashed or cast.
        """
        import jax
        import numpy as np
        from flax.traverse_util import flatten_dict, unflatten_dict

        def wanted(name: str) -> Any:
            shape, kind = self.shapes[name], DTYPES[self.dtypes[name]].numpy
            if where[name] is None:
                return _host(shape, kind)
            return jax.ShapeDtypeStruct(shape, kind, sharding=where[name])

        tree = unflatten_dict({name: wanted(name) for name in self.shapes}, sep="/")
        with _quietly(f"{self.path}: is damaged"), self._ocp.StandardCheckpointer() as reader:
            found = flatten_dict(reader.restore(self.path, tree), sep="/")
        for name in found:
            if digest is not None:
                digest.add_array(name, np.asarray(found[name]))  # on a CPU without a copy
            if dtype is not None:
                found[name] = np.asarray(found[name]).astype(dtype)
            found[name] = jax.device_put(found[name], where[name])
        return found

    def arrays(self, names: Iterable[str]) -> "dict[str, np.ndarray]":
        """Some tensors by path, as stored, on the host."""
        from flax.traverse_util import flatten_dict, unflatten_dict

        ocp, leaves = self._ocp, {name: _host(self.shapes[name], DTYPES[self.dtypes[name]].numpy) for name in names}
        tree = unflatten_dict(leaves, sep="/")
        how = ocp.checkpoint_utils.construct_restore_args(tree)
        with _quietly(f"{self.path}: is damaged"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            wanted = ocp.args.PyTreeRestore(tree, restore_args=how, partial_restore=True)
            return flatten_dict(reader.restore(self.path, wanted), sep="/")

    def close(self):
        """Nothing is left open."""


def _host(shape: tuple[int, ...], kind: Any) -> "np.ndarray":
    """For orbax: an array of numpy's."""
    import numpy as np

    return np.broadcast_to(np.zeros((), kind), shape)


def _look_at(path: Path):
    """Files are plain and not too many, and what is JSON is bounded. Raises: CheckpointError."""
    try:
        if not (path / MARK).exists():
            raise CheckpointError(f"{path}: is no orbax checkpoint of this project (it has no {MARK})")
        count = 0
        for folder, _, names in os.walk(path):
            for name in names:
                count += 1
                file = Path(folder, name)
                if count > MOST_FILES:
                    raise CheckpointError(f"{path}: holds more than {MOST_FILES:,} files")
                status = file.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise CheckpointError(f"{file}: is no regular file")
                if folder == str(path) and name.startswith("_"):  # _METADATA, _CHECKPOINT_METADATA, _sharding
                    _check_json(file)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read ({error.strerror})") from None


def _check_json(file: Path):
    try:
        if not isinstance(strict_json.load(file, most_bytes=MOST_JSON), dict):
            raise strict_json.JSONError("is no JSON object")
    except strict_json.JSONError as error:
        raise CheckpointError(f"{file}: {error}; convert the snapshot again") from None


@contextlib.contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Whatever orbax raises, of whatever type, becomes a CheckpointError; it logs and prints nothing."""
    _ignore_closed_loops()
    try:
        with _silently():
            yield
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises a plain Exception for a file that is missing
        raise CheckpointError(f"{what} ({_reason(error)}); convert the snapshot again") from error


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _ignore_closed_loops():
    """When a file is damaged orbax stops, and its other reads, which end later, find nobody to tell: not an error."""
    if getattr(before := sys.unraisablehook, "ignores_closed_loops", False):
        return

    def hook(unraisable):
        if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    hook.ignores_closed_loops = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


# What a library says of itself when it meets what it did not expect: of no use to anybody.
INSIDES = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, TypeError, UnboundLocalError)


def _reason(error: BaseException) -> str:
    """The innermost cause on one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, INSIDES):
        return "orbax cannot read it"
    return f"orbax: {' '.join(str(error).split()):.200}"


def write_orbax(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """As `write_safetensors`, into an orbax folder. Needs orbax, and memory for a few tensors at a time.

    All tensors are read twice: what the record says of them is written before they are.
    A folder that exists is replaced only if it is an orbax checkpoint, whatever `overwrite` says.
    """
    orbax()
    refuse_to_lose(Path(path), unless=MARK)
    with whole_or_nothing(Path(path).absolute(), overwrite=overwrite) as temporary:
        lines = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for name, sha256 in zip(tensors, pool.map(_sha256, tensors.values()), strict=True):
                lines[name] = tensors[name].dtype, tensors[name].shape, sha256
        record = finish(dataclasses.replace(record, dtype=stored_dtype(tensors), digest=tensors_digest(lines)))
        _save(temporary, path, tensors, record)
    return record


def _sha256(tensor: Tensor) -> str:
    sha = hashlib.sha256()
    for chunk in tensor.chunks():
        sha.update(chunk)
    return sha.hexdigest()


def _save(path: Path, shown: Any, tensors: Mapping[str, Tensor], record: Record):
    """Write a new folder. shown: what errors call it."""
    from flax.traverse_util import unflatten_dict

    leaves = unflatten_dict({name: _Leaf(tensor) for name, tensor in tensors.items()}, sep="/")
    ocp = orbax()
    # Of a training state every tensor has a folder of its own, as it is: that takes half the time, and less memory.
    layout = {} if record.training is None else {"use_ocdbt": False, "use_compression": False}
    with _silently():
        types = ocp.type_handlers.create_type_handler_registry((_Leaf, _streaming()))
        alone = _alone()
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types, multiprocessing_options=alone, **layout)
        checkpointer: Any = ocp.Checkpointer(handler, multiprocessing_options=alone)
    with _silently(), checkpointer:
        try:
            checkpointer.save(path, ocp.args.PyTreeSave(leaves), custom_metadata={KEY: record.to_json()})
        except (OSError, ValueError) as error:  # tensorstore's, with the disk's reason at its end
            reason = " ".join(str(error).split())[-150:]
            raise CheckpointError(f"{shown}: orbax could not write it (... {reason})") from error


def _alone() -> Any:
    """Of several processes this one writes, and waits for no other."""
    import jax

    this = jax.process_index()
    return orbax().options.MultiprocessingOptions(primary_host=this, active_processes={this})


class _Leaf:
    """A tensor that orbax shall write, which is read when its turn comes. What orbax asks of an array, it has."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.shape, self.dtype = tensor, tensor.shape, DTYPES[tensor.dtype].numpy
        self.ndim, self.size, self.nbytes = len(tensor.shape), math.prod(tensor.shape), tensor.nbytes

    def array(self) -> "np.ndarray":
        import numpy as np

        data, at = bytearray(self.nbytes), 0
        for chunk in self.tensor.chunks():
            data[at : at + len(chunk)] = chunk
            at += len(chunk)
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def _streaming() -> Any:
    """What writes leaves as orbax writes numpy's arrays, but not all at once."""
    ocp: Any = orbax()

    class Streaming(ocp.type_handlers.NumpyHandler):
        async def serialize(self, values, infos, args=None):
            room, args = asyncio.Semaphore(THREADS), args or [ocp.SaveArgs()] * len(values)

            async def write(leaf, *about):
                async with room:
                    array = await asyncio.to_thread(leaf.array)
                    for future in await super(Streaming, self).serialize([array], *([each] for each in about)):
                        await asyncio.to_thread(future.result)

            await asyncio.gather(*map(write, values, infos, args))
            return []

    return Streaming(deepcopy_host_arrays=False)


def orbax():
    """The library. Raises: CheckpointError where it is not installed."""
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise CheckpointError("orbax checkpoints need orbax: pip install orbax-checkpoint") from error
    return orbax.checkpoint
