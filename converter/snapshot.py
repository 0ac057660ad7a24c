"""The meaning of a snapshot file: configuration, tensors, encoder and training noise, all checked."""

import dataclasses
import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_edm2.config import ConfigError, EDM2Config
from jax_edm2.messages import brief
from jax_edm2.record import Encoder, Loss

from .errors import SnapshotError
from .formats.file import File, PickleError
from .formats.numpy_pickle import ArrayRecord
from .formats.nvlabs import EASY_DICT, PersistentObject, read_container
from .formats.pickle_reader import Instance
from .modules import ARGUMENTS, VERSION, read_network
from .weights import Weights

RGB, VAE = "StandardRGBEncoder", "StabilityVAEEncoder"

# Classes of NVIDIA's other generators that use the same container.
OTHER_NETWORKS = {
    "EDMPrecond": "an EDM (2022)",
    "VPPrecond": "an EDM (2022)",
    "VEPrecond": "an EDM (2022)",
    "iDDPMPrecond": "an EDM (2022)",
    "Generator": "a StyleGAN",
    "Discriminator": "a StyleGAN",
}


@dataclass(frozen=True)
class Snapshot(Weights):
    """An open snapshot."""

    init_kwargs: dict[str, Any]  # Precond's constructor arguments, as the file has them
    source: str  # the network's embedded source code: text, never executed

    @property
    def source_hash(self) -> str:
        return f"sha256:{hashlib.sha256(self.source.encode()).hexdigest()}"


def read_snapshot(path: str | os.PathLike) -> Snapshot:
    """Open a snapshot and check all of it but the tensors' values.

    Raises: SnapshotError.
    """
    path = Path(path)
    descriptor = open_file(path)
    try:
        file = File(descriptor)
        if file.size == 0:
            raise PickleError("is empty")
        _check_beginning(file)
        return _interpret(path, file, read_container(file))
    except PickleError as error:
        os.close(descriptor)
        raise SnapshotError(f"{path}: {_other_network(error.texts) or error}") from None
    except SnapshotError as error:
        os.close(descriptor)
        raise SnapshotError(f"{path}: {error}") from None
    except BaseException:
        os.close(descriptor)
        raise


def open_file(path: Path, what: str = "a snapshot (.pkl)") -> int:
    """The descriptor of a regular file. what: that it should be. Raises: SnapshotError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
    except FileNotFoundError:
        raise SnapshotError(f"{path}: there is no such file") from None
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be opened ({error.strerror})") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise SnapshotError(f"{path}: is {kind}; give the path of {what}")
    return descriptor


def _check_beginning(file: File):
    start = file.read(0, min(file.size, 16))
    if start.startswith(b"PK"):
        raise PickleError(
            "is a zip file, not a snapshot (.pkl): of a training state (.pt), edm2-convert --weights takes a network"
        )
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < file.size:
        raise PickleError("is a safetensors file, converted already")
    if start[:1] != b"\x80":
        hint = ", but a web page" if start.lstrip()[:1] == b"<" else ""
        raise PickleError(f"is no pickle{hint}: it begins with {start!r:.40}")


def _interpret(path: Path, file: File, top: Any) -> Snapshot:
    top = _dict(top)
    if top is None:
        raise SnapshotError("is a pickle, but not of a network snapshot: it holds no dictionary")
    if "ema" not in top:
        kind = "a StyleGAN snapshot, not EDM2" if "G_ema" in top else "no EDM2 snapshot"
        raise SnapshotError(f"is {kind}: it has no entry 'ema', only {_few(top)}")
    net = top["ema"]
    if not isinstance(net, PersistentObject):
        raise SnapshotError("is no EDM2 snapshot: its entry 'ema' is no network")
    if other := _other_network({net.class_name}):
        raise SnapshotError(other)
    init_kwargs = _init_kwargs(net)
    config = _config(init_kwargs)
    tensors = read_network(net, config)
    encoder, loss = _encoder(file, top.get("encoder")), _loss(top.get("loss_fn"))
    return Snapshot(path, file, config, tensors, encoder, loss, init_kwargs, net.source)


def _dict(value: Any) -> dict[str, Any] | None:
    """A dictionary, plain or EasyDict."""
    if isinstance(value, Instance):
        return (value.state or {}) if value.cls == EASY_DICT else None
    return value if isinstance(value, dict) else None


def _other_network(names: Set[str]) -> str | None:
    """What kind of snapshot it is if one of NVIDIA's other generators is among `names`."""
    for name in sorted(names & OTHER_NETWORKS.keys()):
        return f"is {OTHER_NETWORKS[name]} snapshot ({name}), not EDM2; only EDM2 networks can be converted"
    return None


# The network

_POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")


def _init_kwargs(net: PersistentObject) -> dict[str, Any]:
    args, kwargs = net.state.get("_init_args"), _dict(net.state.get("_init_kwargs"))
    if net.class_name != "Precond" or not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise SnapshotError(f"its network is of class {brief(net.class_name)}, without constructor arguments; not EDM2")
    positional = dict(zip(_POSITIONAL, args, strict=False))
    if len(args) > len(_POSITIONAL) or positional.keys() & kwargs.keys():
        raise SnapshotError("its network's constructor arguments contradict each other")
    return positional | kwargs


def _config(kwargs: dict[str, Any]) -> EDM2Config:
    known = {f.name for f in dataclasses.fields(EDM2Config)}
    unknown = kwargs.keys() - known
    missing = {f.name for f in dataclasses.fields(EDM2Config) if f.default is dataclasses.MISSING} - kwargs.keys()
    if unknown or missing:
        what = [f"unknown arguments {_few(unknown)}"] * bool(unknown) + [f"no {_few(missing)}"] * bool(missing)
        raise SnapshotError(f"its network's configuration has {' and '.join(what)}; not an EDM2 network")
    try:
        return EDM2Config(**kwargs)
    except ConfigError as error:
        raise SnapshotError(f"its network's configuration is impossible: {error}") from None


# Beside the network


def _encoder(file: File, encoder: Any) -> Encoder | None:
    """The encoder's record. Classes that NVlabs does not have are named, and are for others to understand."""
    if encoder is None:
        return None
    _check_object(encoder, "encoder")
    state = encoder.state
    if encoder.class_name == VAE:
        odd = state.keys() - {"vae_name", "scale", "bias", "batch_size", "_vae", *ARGUMENTS}
        if odd or state.get("_vae") is not None or not isinstance(state.get("vae_name"), str):
            raise SnapshotError(f"its encoder has {_few(odd or ['_vae'])}, or no vae_name: not NVlabs' {VAE}")
        scale, bias = (_floats(file, state.get(name), name) for name in ("scale", "bias"))
        return Encoder(VAE, scale, bias, state["vae_name"])
    if encoder.class_name == RGB and (odd := state.keys() - {*ARGUMENTS}):
        raise SnapshotError(f"its encoder has {_few(odd)}, which would hide what NVlabs' {RGB} has of that name")
    return Encoder(encoder.class_name)


def _check_object(value: Any, what: str):
    if not isinstance(value, PersistentObject) or "_modules" in value.state:
        raise SnapshotError(f"its {what} is {brief(value)}, no {what}")
    if not re.fullmatch(r"[A-Za-z_]\w{0,63}", value.class_name, re.ASCII) or value.version != VERSION:
        raise SnapshotError(f"its {what} is of class {brief(value.class_name)}, version {brief(value.version)}")


def _floats(file: File, array: Any, name: str) -> tuple[float, ...]:
    """The numbers of an encoder's array, which NVlabs' code spreads over the channels."""
    kind = array.dtype and {"f4": "f", "f8": "d"}.get(array.dtype.code) if isinstance(array, ArrayRecord) else None
    if kind is None or array.data is None or not 0 < array.data.length <= 4096:
        raise SnapshotError(f"its encoder's {name} is no short array of numbers")
    data = file.read(array.data.offset, array.data.length)
    values = tuple(value for (value,) in struct.iter_unpack(f"<{kind}", data))
    if not all(map(math.isfinite, values)):
        raise SnapshotError(f"its encoder's {name} is not finite")
    return values


def _loss(loss: Any) -> Loss | None:
    if loss is None or not isinstance(loss, PersistentObject) or loss.class_name != "EDM2Loss":
        return None
    names = ("P_mean", "P_std", "sigma_data")
    values = [loss.state.get(name) for name in names]
    numbers = [float(v) for v in values if isinstance(v, int | float) and type(v) is not bool and abs(v) < 1e9]
    if len(numbers) != len(names) or loss.state.keys() - {*names, *ARGUMENTS}:
        raise SnapshotError(f"its loss_fn has other entries than {_few(names)}, or they are no numbers")
    return Loss(*numbers)


def _few(names) -> str:
    names = sorted(ascii(name[:60]) for name in names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
