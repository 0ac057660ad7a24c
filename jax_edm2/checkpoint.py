"""Checkpoints: safetensors files and orbax folders, one network each, with one metadata record.

In a safetensors file the keys are `/`-joined tree paths (`params/unet/out_gain`) and the metadata has the single key
`edm2`. Reading and writing safetensors needs no jax until arrays are asked for.
"""

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.files import whole_or_nothing
from jax_edm2.messages import listing
from jax_edm2.record import KEY, Record, RecordError, tensors_digest

if TYPE_CHECKING:
    import jax
    import numpy as np

    from jax_edm2.network import Precond

SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32", "bfloat16": "BF16", "float64": "F64"}
ITEM_SIZES = {"float16": 2, "float32": 4, "bfloat16": 2, "float64": 8}
WRITING_THREADS = 2
ORBAX_MARK = "_CHECKPOINT_METADATA"  # a file that every orbax checkpoint has
FLUSH_EVERY = 0.03  # seconds


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, not of this project, or does not hold the network that it says."""


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: `chunks()` yields its little-endian C-ordered bytes, piece by piece.

    A piece may be a view that is valid only until the next is asked for.
    """

    dtype: str  # numpy's name: float16, float32, bfloat16, float64
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def nbytes(self) -> int:
        size = ITEM_SIZES[self.dtype]
        for length in self.shape:
            size *= length
        return size


def check_tree(config: EDM2Config, shapes: Mapping[str, tuple[int, ...]], name=str) -> list[str]:
    """What in `shapes` differs from the tree of `config`, a phrase each: `- missing`, `+ extra`, `! shape`.

    `name` turns a tree path into what the user knows it as.
    """
    expected = expected_tree(config)
    lines = [f"- {name(path)} {list(shape)} is missing" for path, shape in expected.items() if path not in shapes]
    lines += [f"+ {name(path)} {list(shapes[path])} is not part of it" for path in shapes if path not in expected]
    for path, shape in expected.items():
        if path in shapes and tuple(shapes[path]) != shape:
            lines.append(f"! {name(path)} is {list(shapes[path])}, should be {list(shape)}")
    return lines


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Stream `tensors` into a file, never holding more than a chunk, and return the record that was written.

    That is `record` with dtype and digest set, through `finish`, which may add what is only known when all tensors
    have been read (a hash of the source) as long as that does not change the record's length.
    Raises: CheckpointError if `path` is a folder, link or device; FileExistsError unless `overwrite`; OSError.
    """
    _refuse_to_lose(Path(path))
    # The largest items first, so that every tensor is aligned; then by name.
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], name))
    record = dataclasses.replace(record, dtype=stored_dtype(tensors), digest=tensors_digest({}))
    header, offsets = _header(tensors, order, record)
    with whole_or_nothing(Path(path), overwrite=overwrite) as temporary, open(temporary, "wb") as file:

        def write(name):
            tensor, offset, sha = tensors[name], len(header) + offsets[name], hashlib.sha256()
            for chunk in tensor.chunks():
                sha.update(chunk)
                _write_at(file.fileno(), chunk, offset)
                offset += len(chunk)
            return name, (tensor.dtype, tensor.shape, sha.hexdigest())

        done = threading.Event()
        with ThreadPoolExecutor(WRITING_THREADS + 1) as pool:  # reading, hashing and writing all release the GIL
            flushed = pool.submit(_flush, file.fileno(), done)
            try:
                lines = dict(_all(pool, write, order))
            finally:
                done.set()
            flushed.result()
        record = finish(dataclasses.replace(record, digest=tensors_digest(lines)))
        final, _ = _header(tensors, order, record)
        if len(final) != len(header):
            raise ValueError("the metadata record changed its length while the tensors were written")
        _write_at(file.fileno(), final, 0)
        os.fsync(file.fileno())
    return record


def _all(pool: Executor, function: Callable, items: Iterable) -> list:
    """Results of `function` on every item; the first error cancels what has not begun."""
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _flush(descriptor: int, done: threading.Event):
    """Keep the disk busy while the file is still being written, so that little is left for the last fsync."""
    while not done.wait(FLUSH_EVERY):
        os.fsync(descriptor)


def _write_at(descriptor: int, data: bytes | memoryview, offset: int):
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _header(tensors: Mapping[str, Tensor], order: list[str], record: Record) -> tuple[bytes, dict[str, int]]:
    """The beginning of the file, and where each tensor lies after it."""
    entries: dict[str, Any] = {"__metadata__": {KEY: record.to_json()}}
    offsets = {}
    offset = 0
    for name in order:
        offsets[name], end = offset, offset + tensors[name].nbytes
        dtype = SAFETENSORS_DTYPES[tensors[name].dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def stored_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The dtype of all tensors, or several joined by '+'."""
    return "+".join(sorted({tensor.dtype for tensor in tensors.values()}))


def write_orbax(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    record: Record,
    *,
    overwrite: bool = False,
    finish: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """As `write_safetensors`, into an orbax folder. Needs orbax and memory for the whole tree.

    A folder that exists is replaced only if it is an orbax checkpoint, whatever `overwrite` says.
    """
    ocp = _orbax()
    from flax.traverse_util import unflatten_dict

    _refuse_to_lose(Path(path), unless=ORBAX_MARK)
    target = Path(path).absolute()  # orbax wants it so
    with whole_or_nothing(target, overwrite=overwrite) as temporary, ocp.StandardCheckpointer() as checkpointer:
        arrays, lines = {}, {}
        for name, tensor in tensors.items():
            data = b"".join(map(bytes, tensor.chunks()))  # copied: a chunk may be overwritten by the next
            lines[name] = tensor.dtype, tensor.shape, hashlib.sha256(data).hexdigest()
            arrays[name] = _from_bytes(data, tensor)
        record = finish(dataclasses.replace(record, dtype=stored_dtype(tensors), digest=tensors_digest(lines)))
        tree = unflatten_dict(arrays, sep="/")
        try:
            checkpointer.save(temporary, tree, custom_metadata={KEY: record.to_json()})
            checkpointer.wait_until_finished()
        except (OSError, ValueError) as error:  # tensorstore's, with the disk's reason at its end
            reason = " ".join(str(error).split())[-150:]
            raise CheckpointError(f"{path}: orbax could not write it (... {reason})") from error
    return record


def _refuse_to_lose(path: Path, unless: str | None = None):
    """No folder, link or device is ever replaced, even if told to overwrite; a folder with the file `unless` may be."""
    if path.is_dir() and not (unless and (path / unless).exists()):
        raise CheckpointError(f"{path}: is a folder and would be lost; choose another output")
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        raise CheckpointError(f"{path}: is a link or a device and would be lost; choose another output")


WRITERS = {"safetensors": write_safetensors, "orbax": write_orbax}


def read_record(path: str | os.PathLike) -> Record:
    """The metadata record of a checkpoint. Raises: CheckpointError."""
    return _open(Path(path)).record


def load(
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    compute_dtype: Any = None,
    sharding: "jax.sharding.Sharding | jax.Device | None" = None,
) -> "tuple[Precond, dict]":
    """A converted network and its variables: D = net.apply(variables, x, sigma, class_labels).

    dtype: of the variables; as stored by default. compute_dtype: of the network's activations; float32 by default.
    sharding: where every variable goes, one tensor at a time; to the default device by default.
    Raises: CheckpointError.
    """
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    from jax_edm2.network import Precond

    if sharding is None or isinstance(sharding, jax.Device):
        sharding = jax.sharding.SingleDeviceSharding(sharding or jax.local_devices()[0])

    stored = _open(Path(path))
    problems = check_tree(stored.record.config, stored.shapes)
    if problems:
        raise CheckpointError(f"{path}: does not hold the network of its record: " + listing(problems))
    net = Precond(stored.record.config, jnp.float32 if compute_dtype is None else compute_dtype)
    return net, unflatten_dict(stored.variables(dtype, sharding), sep="/")


def save(
    path: str | os.PathLike,
    net: "Precond",
    variables: Mapping[str, Any],
    *,
    record: Record | None = None,
    overwrite: bool = False,
) -> Record:
    """Write a checkpoint: a safetensors file if `path` ends in .safetensors, else an orbax folder.

    record: what else to say of it (`read_record` of the checkpoint that was fine-tuned, say). Its config must be net's.
    Raises: CheckpointError; FileExistsError unless `overwrite`; OSError.
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
    tensors = {}
    for name, value in flatten_dict(dict(variables), sep="/").items():
        array = np.asarray(value, order="C")
        if str(array.dtype) not in SAFETENSORS_DTYPES:
            raise CheckpointError(f"{path}: {name} is {array.dtype}; storable are {', '.join(SAFETENSORS_DTYPES)}")
        tensors[name] = Tensor(str(array.dtype), array.shape, lambda array=array: [array.tobytes()])  # type: ignore
    problems = check_tree(config, {name: tensor.shape for name, tensor in tensors.items()})
    if problems:
        raise CheckpointError(f"{path}: these are not the variables of the network: " + listing(problems))
    write = write_safetensors if str(path).endswith(".safetensors") else write_orbax
    return write(path, tensors, record, overwrite=overwrite)


@dataclass(frozen=True)
class _Stored:
    """An open checkpoint: its record, its shapes by path, and how to bring its variables, by path, to the devices."""

    record: Record
    shapes: dict[str, tuple[int, ...]]
    variables: "Callable[[Any, jax.sharding.Sharding], dict[str, jax.Array]]"


def _open(path: Path) -> _Stored:
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    try:
        return _open_orbax(path) if path.is_dir() else _open_safetensors(path)
    except RecordError as error:
        raise CheckpointError(f"{path}: {error}; make it again with edm2-convert") from error


def _open_safetensors(path: Path) -> _Stored:
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is no safetensors file ({error})") from error
    names = file.keys()
    for name in names:
        if (found := file.get_slice(name).get_dtype()) not in SAFETENSORS_DTYPES.values():
            raise CheckpointError(f"{path}: {name} is {found}; weights are {', '.join(SAFETENSORS_DTYPES.values())}")
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}

    def variables(dtype, sharding):
        import jax

        def put(array):
            return jax.device_put(array if dtype is None else array.astype(dtype), sharding)

        return {name: put(array) for name, array in _arrays(path)}

    return _Stored(Record.from_json((file.metadata() or {}).get(KEY, "null")), shapes, variables)


def _arrays(path: Path) -> "Iterator[tuple[str, np.ndarray]]":
    """(name, array) of a safetensors file that is known to be sound, one after the other.

    Read, and not mapped: pages that are mapped stay in the process's memory, beside what is made of them.
    """
    import ml_dtypes
    import numpy as np

    names = {code: name for name, code in SAFETENSORS_DTYPES.items()}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype = np.dtype(ml_dtypes.bfloat16 if entry["dtype"] == "BF16" else names[entry["dtype"]])
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            yield name, np.fromfile(file, dtype, (end - begin) // dtype.itemsize).reshape(entry["shape"])


def _open_orbax(path: Path) -> _Stored:
    ocp = _orbax()
    from flax.traverse_util import flatten_dict, unflatten_dict

    path = path.absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(path)
            leaves = flatten_dict(metadata.item_metadata.tree, sep="/")
            text = metadata.custom_metadata[KEY]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: is no orbax checkpoint of this project ({error!r:.200})") from error

    def variables(dtype, sharding):
        import jax

        tree = {
            name: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)
            for name, leaf in leaves.items()
        }
        with ocp.StandardCheckpointer() as checkpointer:
            return flatten_dict(checkpointer.restore(path, unflatten_dict(tree, sep="/")), sep="/")

    return _Stored(Record.from_json(text), {name: tuple(leaf.shape) for name, leaf in leaves.items()}, variables)


def _from_bytes(data: bytes, tensor: Tensor) -> "np.ndarray":
    import ml_dtypes
    import numpy as np

    dtype = ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype)
    return np.frombuffer(data, dtype).reshape(tensor.shape)


def _orbax():
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise CheckpointError("orbax checkpoints need orbax: pip install 'edm2-jax[orbax]'") from error
    return orbax.checkpoint
