"""The weights of the detectors of FID and FD-DINOv2, from the files that people have; nothing in them is executed.

fid        NVlabs' inception-2015-12-05.pkl and its TorchScript twin (.pt); pytorch-fid's .pth
fd_dinov2  dinov2_vitl14_pretrain.pth

and safetensors of the same names. Nobody here has opened NVlabs' files: their names are those that public code reads
them by, and whatever is not as expected is said.
"""

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_edm2.dtypes import DTYPES
from jax_edm2.safetensors_format import CODES, FormatError
from jax_edm2.safetensors_format import File as Safetensors

from .downloads.cache import sha256
from .errors import ConverterError
from .formats import torch_legacy, torch_zip
from .formats.file import File, PickleError
from .formats.nvlabs import PersistentObject, read_container
from .formats.pickle_reader import Instance
from .formats.torch_legacy import TensorRecord
from .snapshot import open_file
from .sources import Fetching, Location
from .weights import in_shape

if TYPE_CHECKING:
    import numpy as np

    from jax_edm2.evaluation import Detector

URLS = {
    "fid": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "fd_dinov2": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
}
HASH = re.compile(r"-([0-9a-f]{8})\.pth")  # torch.hub's names have the beginning of the sha256
OPTION = {"fid": "--inception", "fd_dinov2": "--dinov2"}
CONTAINERS = ("_parameters", "_buffers", "_modules")  # what a torch module keeps its tensors and modules in
MOST_DEPTH, MOST_MODULES = 16, 10_000


class DetectorError(ConverterError):
    """A detector's weights that are missing, broken, or not those."""


@dataclass(frozen=True)
class Found:
    """A detector, and what its weights are known by."""

    detector: "Detector"
    name: str
    sha256: str


def find_detector(metric: str, given: str | None, fetching: Fetching) -> Found:
    """given: a file or its URL; by default the published one. Raises: ConverterError, OSError."""
    location = Location(URLS[metric] if given is None else given)
    if not location.remote:
        return _found(metric, Path(location.text), location.name)

    def check(path: Path):
        digest, named = sha256(path), HASH.search(location.text)
        if named and not digest.startswith(named[1]):
            raise DetectorError(f"{location.name}: its sha256 is {digest}, which its name says begins with {named[1]}")
        read_tensors(path, metric)

    return _found(metric, fetching.fetch(location.text, check), location.name)


def _found(metric: str, path: Path, name: str) -> Found:
    from jax_edm2.evaluation import Detector

    try:
        detector = Detector.of(metric, read_tensors(path, metric))
    except ValueError as error:
        raise DetectorError(f"{path}: {error}; give another file with {OPTION[metric]}") from None
    return Found(detector, name, sha256(path))


def read_tensors(path: Path, metric: str) -> "dict[str, np.ndarray]":
    """Every tensor of a file, by the names that `Detector.of` takes. Raises: DetectorError."""
    from jax_edm2.evaluation.detectors import check

    if path.suffix == ".safetensors":
        arrays = _safetensors(path, metric)
    else:
        descriptor = open_file(path, "a detector's weights (.pkl, .pt, .pth or .safetensors)")
        try:
            file = File(descriptor)
            records = {_canonical(name): record for name, record in _records(file)}
            check(metric, {name: record.shape for name, record in records.items()})
            weights = {name: record for name, record in records.items() if record.dtype in DTYPES}  # and no counts
            arrays = {name: _array(file, name, record) for name, record in weights.items()}
        except (PickleError, ValueError) as error:
            raise DetectorError(f"{path}: {error}") from None
        finally:
            os.close(descriptor)
    return arrays


def _records(file: File) -> Iterator[tuple[str, TensorRecord]]:
    """Raises: PickleError."""
    start = file.read(0, min(file.size, 16))
    if start.startswith(b"PK"):
        yield from (
            _of_modules(torch_zip.read_script(file))
            if torch_zip.is_script(file)
            else (torch_zip.read_state_dict(file).items())
        )
    elif start.startswith(b"\x80\x02\x8a\x0a"):  # the number that torch.save began with before 1.6
        yield from torch_legacy.read_state_dict(file).items()
    elif start.startswith(b"\x80"):
        yield from _of_modules(read_container(file, lambda module, _: module.startswith("torch.nn.modules.")))
    else:
        what = "is empty" if not start else f"begins with {start!r:.40}"
        raise PickleError(f"is no file of torch or NVlabs with weights: it {what}")


def _of_modules(value: Any) -> Iterator[tuple[str, TensorRecord]]:
    """The tensors of modules within modules, by torch's names. Raises: PickleError."""
    visits = 0

    def walk(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, TensorRecord]]:
        nonlocal visits
        visits += 1
        if depth > MOST_DEPTH or visits > MOST_MODULES:  # a module may be there in many places
            raise PickleError(f"has modules nested more than {MOST_DEPTH} deep, or more than {MOST_MODULES:,}")
        state = value.state if isinstance(value, Instance | PersistentObject) else value
        if not isinstance(state, dict):
            raise PickleError("is a pickle, but of no network: it holds no modules")
        for name, item in state.items():
            if isinstance(item, TensorRecord):
                yield prefix + name, item
            elif name in CONTAINERS and isinstance(item, dict):
                yield from walk(item, prefix, depth + 1)
            elif isinstance(item, Instance | PersistentObject) and item.state is not None:
                yield from walk(item, f"{prefix}{name}.", depth + 1)

    return walk(value, "", 0)


def _array(file: File, name: str, record: TensorRecord) -> "np.ndarray":
    """Raises: PickleError."""
    data = file.read(record.data.offset, record.data.length)
    if record.crc is not None and zlib.crc32(data) != record.crc:
        raise PickleError(f"is damaged: {name} does not have its checksum; fetch it again")
    return in_shape(record, data)


def _safetensors(path: Path, metric: str) -> "dict[str, np.ndarray]":
    """Raises: DetectorError."""
    from jax_edm2.evaluation.detectors import check

    if not path.is_file():
        raise DetectorError(f"{path}: there is no such file")
    try:
        with Safetensors(path) as file:
            names = {_canonical(name): name for name in file.entries}
            check(metric, {name: file.entries[stored].shape for name, stored in names.items()})
            return {name: file.array(stored) for name, stored in names.items() if file.entries[stored].dtype in CODES}
    except (FormatError, ValueError) as error:
        raise DetectorError(f"{path}: {error}") from None


# NVlabs' names of Inception's layers are those of TensorFlow's graph.

_LAYERS = {
    "conv": "Conv2d_1a_3x3", "conv_1": "Conv2d_2a_3x3", "conv_2": "Conv2d_2b_3x3", "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}  # fmt: skip
_BLOCKS = dict(
    zip(
        ["mixed", *(f"mixed_{i}" for i in range(1, 11))],
        [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")],
        strict=True,
    )
)


def _numbered(tower: str, branches: list[str]) -> dict[str, str]:
    """conv, conv_1, ... of a tower."""
    return {f"{tower}.conv" + f"_{i}" * bool(i): branch for i, branch in enumerate(branches)}


_A = {
    "conv": "branch1x1",
    **_numbered("tower", ["branch5x5_1", "branch5x5_2"]),
    **_numbered("tower_1", [f"branch3x3dbl_{i}" for i in (1, 2, 3)]),
    "tower_2.conv": "branch_pool",
}
_B = {"conv": "branch3x3", **_numbered("tower", [f"branch3x3dbl_{i}" for i in (1, 2, 3)])}
_C = {
    "conv": "branch1x1",
    **_numbered("tower", [f"branch7x7_{i}" for i in (1, 2, 3)]),
    **_numbered("tower_1", [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)]),
    "tower_2.conv": "branch_pool",
}
_D = {
    **_numbered("tower", ["branch3x3_1", "branch3x3_2"]),
    **_numbered("tower_1", [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]),
}
_E = {
    "conv": "branch1x1", "tower_conv": "branch3x3_1", "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b", "tower_1_conv": "branch3x3dbl_1", "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a", "tower_1_mixed_conv_1": "branch3x3dbl_3b", "tower_2_conv": "branch_pool",
}  # fmt: skip
_BRANCHES = {"5": _A, "6a": _B, "6": _C, "7a": _D, "7": _E}
_PARTS = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
NVLABS_NAMES = {f"layers.{given}": name for given, name in _LAYERS.items()}
for _given, _block in _BLOCKS.items():
    _kind = _BRANCHES.get(_block[6:]) or _BRANCHES[_block[6]]
    NVLABS_NAMES |= {f"layers.{_given}.{branch}": f"{_block}.{name}" for branch, name in _kind.items()}
NVLABS_NAMES = {f"{given}.{part}": f"{name}.{_PARTS[part]}" for given, name in NVLABS_NAMES.items() for part in _PARTS}
NVLABS_NAMES |= {"output.weight": "fc.weight", "output.bias": "fc.bias"}


def _canonical(name: str) -> str:
    """pytorch-fid's name, of NVlabs'."""
    return NVLABS_NAMES.get(name, name)
