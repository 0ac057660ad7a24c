"""Pickles that no pickler would make: opcodes as they are, calls of any global, tensors with a lie in them."""

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import EasyDict, SnapshotPickler, container_modules
from tests.support.networks import network

SENTINEL = "executed"  # the file that a payload makes in the working folder, if it is run

CONFIG = {
    "img_resolution": 8,
    "img_channels": 2,
    "label_dim": 3,
    "model_channels": 4,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 4,
}


class Raw:
    """Opcodes as they are."""

    def __init__(self, data: bytes):
        self.data = data


class Call:
    """A function, by the name of a global, and what it is called with."""

    def __init__(self, name: str, *arguments):
        self.name, self.arguments = name, arguments


class Built:
    """A value, and the state that BUILD gives it."""

    def __init__(self, value, state):
        self.value, self.state = value, state


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(" ")
    return f"c{module}\n{attribute}\n".encode()


class HostilePickler(pickle._Pickler):
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)
    reducer_override = SnapshotPickler.reducer_override

    def _raw(self, obj):
        self.write(obj.data)

    def _call(self, obj):
        self.write(named(obj.name))
        self.save(obj.arguments)
        self.write(b"R")

    def _built(self, obj):
        self.save(obj.value)
        self.save(obj.state)
        self.write(b"b")

    dispatch[Raw] = _raw
    dispatch[Call] = _call
    dispatch[Built] = _built


def dumps(value, protocol=4) -> bytes:
    file = io.BytesIO()
    with container_modules():
        HostilePickler(file, protocol).dump(value)
    return file.getvalue()


def net() -> Precond:
    return network(CONFIG).half()


def snapshot(edit: Callable = lambda net: None, **entries):
    """A snapshot's dictionary, after `edit` of its network."""

    def build():
        made = net()
        edit(made)
        return EasyDict({"encoder": None, "dataset_kwargs": EasyDict(), "loss_fn": None, "ema": made, **entries})

    return lambda _path: build()


def good() -> bytes:
    return dumps(snapshot()(None))


def call(*_):
    """What makes the sentinel, if it is run."""
    return Call("posix system", f"touch {SENTINEL}")


RUN = b"X" + struct.pack("<I", len(f"touch {SENTINEL}")) + f"touch {SENTINEL}".encode()
PROTO = b"\x80\x04"


def weight(value, name="out_conv"):
    """A snapshot whose unet.out_conv.weight is something else."""

    def edit(made):
        made.unet._modules[name]._parameters["weight"] = value

    return snapshot(edit)


SHAPE, STRIDE = (2, 4, 3, 3), (36, 9, 3, 1)  # of unet.out_conv.weight
NUMEL = 72


def storage(
    *, kind="torch HalfStorage", key="1", location="cpu", numel=NUMEL, count=None, data=None, keys=None,
    magic=0x1950A86A20F9469CFC6C, protocol=1001, system=None, view=None, pid=None, tail=b"", cut=None,
):  # fmt: skip
    """What torch.save (before 1.6) writes for a storage, as an argument of torch's loader."""
    stream = [pickle.dumps(magic, 2), pickle.dumps(protocol, 2)]
    stream.append(pickle.dumps({"little_endian": True, "protocol_version": 1001} if system is None else system, 2))
    pid = ("storage", Raw(named(kind)), key, location, numel, view) if pid is None else pid
    file = io.BytesIO()
    pickler = HostilePickler(file, 2)
    pickler.write(b"\x80\x02")
    pickler.save(pid)
    stream.append(file.getvalue() + b"Q.")
    stream.append(pickle.dumps([key] if keys is None else keys, 2))
    stream.append(struct.pack("<q", numel if count is None else count))
    stream.append(bytes(2 * NUMEL) if data is None else data)
    stream.append(tail)
    return Call("torch.storage _load_from_bytes", b"".join(stream)[:cut])


def tensor(
    stored=None, offset=0, shape=SHAPE, stride=STRIDE, gradient=False, hooks=None, *more, name="_rebuild_tensor_v2"
):
    stored = storage() if stored is None else stored
    return Call(f"torch._utils {name}", stored, offset, shape, stride, gradient, hooks or OrderedDict(), *more)
