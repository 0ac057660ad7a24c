"""Snapshots whose bytes are in order and whose tensors or networks are not."""

import os
import struct
from collections import OrderedDict

import numpy as np
import torch

from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import EasyDict
from tests.corpora.hostile_pickles import (
    CONFIG,
    NUMEL,
    PROTO,
    SHAPE,
    STRIDE,
    Built,
    Call,
    Raw,
    dumps,
    good,
    named,
    snapshot,
    storage,
    tensor,
    weight,
)
from tests.corpora.inputs import ACCEPT, Input, snapshot_input

INPUTS: list[Input] = []


def add(*described):
    INPUTS.append(snapshot_input(*described))


# Tensors

TENSORS = "tensors"


def array(code="f4", state=None, data=bytes(8), shape=(2,), fortran=False):
    """A numpy array in an encoder's scale, where snapshots have one."""
    dtype = Call("numpy dtype", code, False, True)
    if state is not None:
        dtype = Built(dtype, state)
    made = Call("numpy.core.multiarray _reconstruct", Raw(named("numpy ndarray")), (0,), b"b")
    return Built(made, (1, shape, dtype, fortran, data))


SOUND = (3, "<", None, None, None, -1, -1, 0)


def special(made):
    made.unet.out_conv.weight.flatten()[:3] = torch.tensor([np.nan, np.inf, -np.inf])


def parameter(made):
    made.unet.out_conv.weight = torch.nn.Parameter(made.unet.out_conv.weight.detach().transpose(2, 3))


for name, value, says in (
    ("a negative dimension", tensor(shape=(-2, 4, 3, 3)), "malformed storage, shape or stride"),
    ("a dimension that is true", tensor(shape=(True, 4, 3, 3)), "malformed storage, shape or stride"),
    ("a dimension that is a float", tensor(shape=(2.0, 4, 3, 3)), "malformed storage, shape or stride"),
    ("a product that overflows", tensor(shape=(2**61, 2**61, 2**61, 4)), "is not the whole of its storage"),
    ("65 dimensions", tensor(shape=(1,) * 65, stride=(1,) * 65), "malformed storage, shape or stride"),
    ("100,000 dimensions", tensor(shape=(1,) * 10**5, stride=(1,) * 10**5), "malformed storage, shape or stride"),
    ("a negative stride", tensor(stride=(36, 9, 3, -1)), "malformed storage, shape or stride"),
    ("overlapping strides", tensor(stride=(0, 9, 3, 1)), "is not contiguous"),
    ("strides out of range", tensor(stride=(3600, 9, 3, 1)), "is not contiguous"),
    ("transposed", tensor(stride=(36, 9, 1, 3)), "is not contiguous"),
    ("fewer strides than dimensions", tensor(stride=(9, 3, 1)), "malformed storage, shape or stride"),
    ("an offset", tensor(offset=4), "is not the whole of its storage"),
    ("a negative offset", tensor(offset=-4), "is not the whole of its storage"),
    ("a part of its storage", tensor(shape=(1, 4, 3, 3)), "is not the whole of its storage"),
    ("more than its storage", tensor(shape=(3, 4, 3, 3)), "is not the whole of its storage"),
    ("a shape that is a list", tensor(shape=[2, 4, 3, 3]), "malformed storage, shape or stride"),
    ("a shape that is text", tensor(shape="2433"), "malformed storage, shape or stride"),
    ("requires_grad of 1", tensor(None, 0, SHAPE, STRIDE, 1), "malformed requires_grad"),
    ("a negative view", tensor(None, 0, SHAPE, STRIDE, False, None, {"neg": True}), "conjugate or negative view"),
    ("no storage", tensor(5), "malformed storage, shape or stride"),
    ("int64", tensor(storage(kind="torch LongStorage")), "global 'torch.LongStorage'"),
    ("complex", tensor(storage(kind="torch ComplexFloatStorage")), "global 'torch.ComplexFloatStorage'"),
    ("quantised", tensor(name="_rebuild_qtensor"), "global 'torch._utils._rebuild_qtensor'"),
    ("meta", tensor(name="_rebuild_meta_tensor_no_storage"), "global 'torch._utils._rebuild_meta_tensor_no_storage'"),
    ("sparse", tensor(name="_rebuild_sparse_tensor"), "global 'torch._utils._rebuild_sparse_tensor'"),
    ("a wrapped subclass", tensor(name="_rebuild_wrapper_subclass"), "global 'torch._utils._rebuild_wrapper_subclass'"),
    ("a number", 5, "unet.out_conv.weight is no tensor"),
    ("text", "text", "unet.out_conv.weight is no tensor"),
    ("a parameter of no tensor", Call("torch._utils _rebuild_parameter", 5, False, OrderedDict()), "is not a plain tensor"),
    ("zeros in plain order", tensor(), ACCEPT),
    ("float32 among float16", tensor(storage(kind="torch FloatStorage", data=bytes(4 * NUMEL))), ACCEPT),
):  # fmt: skip
    add(TENSORS, name, says, weight(value))
add(TENSORS, "NaN and infinities", ACCEPT, snapshot(special))
add(TENSORS, "a transposed parameter", "is not contiguous", snapshot(parameter))
for name, value, says in (
    ("an array of objects", array("O8", SOUND), "unsupported dtype 'O8'"),
    ("an array of records", array([("a", "f4")], SOUND), "unsupported dtype"),
    ("a dtype without a state", array("f4"), "malformed dtype or data"),
    ("a dtype of big-endian numbers", array("f4", (3, ">", *SOUND[2:])), "is not a plain little-endian one"),
    ("a dtype with a malformed state", array("f4", (3,)), "is not a plain little-endian one"),
    ("a dtype with fields", array("f4", (3, "<", None, ("a",), {"a": 1}, -1, -1, 0)), "is not a plain little-endian one"),
    ("an array with too few bytes", array("f4", SOUND, data=bytes(7)), "does not fit its 7 bytes"),
    ("an array with a negative dimension", array("f4", SOUND, shape=(-2,)), "malformed shape"),
    ("an array in Fortran's order", array("f4", SOUND, shape=(2, 1), fortran=True), "not C-ordered"),
    ("an array of a bytearray", array("f4", SOUND, data=Raw(b"\x96" + struct.pack("<Q", 8) + bytes(8))), "malformed state"),
    ("an array of version 2", Built(Call("numpy.core.multiarray _reconstruct", Raw(named("numpy ndarray")), (0,), b"b"), (2, (2,), Built(Call("numpy dtype", "f4", False, True), SOUND), False, bytes(8))), "malformed state"),
    ("a number of float16", Call("numpy.core.multiarray scalar", Built(Call("numpy dtype", "f2", False, True), SOUND), bytes(2)), "a numpy number is a float16"),
    ("a number with too few bytes", Call("numpy._core.multiarray scalar", Built(Call("numpy dtype", "f8", False, True), SOUND), bytes(4)), "does not fit its 4 bytes"),
    ("a number of objects", Call("numpy._core.multiarray scalar", Call("numpy dtype", "O8", False, True), bytes(8)), "unsupported dtype 'O8'"),
    ("a dtype with flags", array("f4", (3, "<", None, None, None, -1, -1, 63)), "not a plain little-endian one"),
    ("a dtype with an alignment", array("f4", (3, "<", None, None, None, -1, 8, 0)), "not a plain little-endian one"),
    ("a dtype with a version of its own", array("f4", (4, "<", None, None, None, -1, -1, 0)), "not a plain little-endian one"),
    ("a dtype with a size as a fraction", array("f4", (3, "<", None, None, None, -1.0, -1, 0)), "not a plain little-endian one"),
    ("an array that is text", array("f4", SOUND, data="xxxxxxxx"), "malformed state"),
):  # fmt: skip
    add(TENSORS, name, says, snapshot(encoder=value))

# Models

MODEL = "model"


def renamed(old, new):
    """A snapshot with a parameter under another name."""

    def edit(made):
        made.unet.out_conv._parameters = {new if k == old else k: v for k, v in made.unet.out_conv._parameters.items()}

    return snapshot(edit)


def class_named(name):
    def build(_path):
        cls = type(name, (Precond,), {"__module__": Precond.__module__})
        return EasyDict(ema=cls(**CONFIG).half())

    return build


def persistent(**changes):
    """A network whose persistence record differs."""

    def build(_path):
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": "Precond", "state": {}, **changes}
        return EasyDict(ema=Call("torch_utils.persistence _reconstruct_persistent_obj", meta))

    return build


def drop(made):
    del made.unet.out_conv._parameters["weight"]


def kwargs(**changes):
    return snapshot(lambda n: setattr(n, "_init_kwargs", {**CONFIG, **changes}))


for name, value, says in (
    ("a name with ../", renamed("weight", "../../x"), "+ unet.out_conv.'../../x'"),
    ("a name with NUL", renamed("weight", "a\0b"), "+ unet.out_conv.'a\\x00b'"),
    ("a name with a slash", renamed("weight", "a/b"), "+ unet.out_conv.'a/b'"),
    ("a name with a dot", renamed("weight", "we.ight"), "+ unet.out_conv.'we.ight'"),
    ("an empty name", renamed("weight", ""), "+ unet.out_conv.''"),
    ("a name of 1,000 letters", renamed("weight", "x" * 1000), "+ unet.out_conv.'xxx"),
    ("a name of surrogates", PROTO + b"}X\x03\x00\x00\x00\xed\xa0\x80K\x01s.", "is not UTF-8"),
    ("a name with a line break", renamed("weight", "a\nb"), "+ unet.out_conv.'a\\nb'"),
    ("a name in another script", renamed("weight", "gewicht_ä"), "+ unet.out_conv.'gewicht_\\xe4'"),
    ("a key twice", PROTO + b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x02s.", "has the key 'a' twice"),
    ("a number as a key", {1: 2}, "a key of type int; snapshots have text only"),
    ("a parameter is missing", snapshot(drop), "- unet.out_conv.weight [2, 4, 3, 3] is missing"),
    ("a parameter too many", snapshot(lambda n: n.unet.register_buffer("extra", torch.zeros(2))), "+ unet.extra [2] is not part of it"),
    ("a module is missing", snapshot(lambda n: n.unet._modules.pop("out_conv")), "- unet.out_conv.weight"),
    ("an unknown class", class_named("Denoiser"), "its network is of class 'Denoiser'"),
    ("EDM (2022)", class_named("EDMPrecond"), "is an EDM (2022) snapshot (EDMPrecond), not EDM2"),
    ("StyleGAN", class_named("Generator"), "is a StyleGAN snapshot (Generator), not EDM2"),
    ("StyleGAN's keys", {"G": 1, "D": 2, "G_ema": 3}, "is a StyleGAN snapshot, not EDM2"),
    ("an unknown version", persistent(version=7, state={"_init_args": (), "_init_kwargs": dict(CONFIG)}), "persistence version 7, not 6"),
    ("a version that is text", persistent(version="6"), "has a wrong entry 'version'"),
    ("a function for a class", persistent(type="function"), "has a wrong entry 'type'"),
    ("source that is no text", persistent(module_src=5), "has a wrong entry 'module_src'"),
    ("a state that is no dictionary", persistent(state=5), "has a wrong entry 'state'"),
    ("an unknown entry", persistent(more=5), "has a wrong entry 'more'"),
    ("an empty state", persistent(), "without constructor arguments"),
    ("no parameters", persistent(state={"_init_args": (), "_init_kwargs": dict(CONFIG)}), "has no _parameters"),
    ("arguments that contradict the shapes", kwargs(label_dim=7), "should be [8, 7]"),
    ("arguments that contradict the attributes", snapshot(lambda n: setattr(n, "sigma_data", 3)), "! sigma_data is 3, should be 0.5"),
    ("an unknown argument", kwargs(magic=1), "unknown arguments 'magic'"),
    ("a missing argument", snapshot(lambda n: n._init_kwargs.pop("img_channels")), "no 'img_channels'"),
    ("arguments given twice", snapshot(lambda n: setattr(n, "_init_args", (8,))), "contradict each other"),
    ("too many arguments", snapshot(lambda n: setattr(n, "_init_args", (1,) * 9)), "contradict each other"),
    ("sigma_data is NaN", kwargs(sigma_data=float("nan")), "sigma_data must be a number"),
    ("no levels", snapshot(lambda n: n._init_kwargs.update(channel_mult=[])), "channel_mult must not be empty"),
    ("text as a number", kwargs(model_channels="16"), "model_channels must be an integer"),
    ("no heads fit", kwargs(channels_per_head=3, model_channels=8), "do not divide into"),
    ("ema is absent", {"G": 1}, "it has no entry 'ema', only 'G'"),
    ("ema is a tensor", {"ema": tensor()}, "its entry 'ema' is no network"),
    ("ema is None", {"ema": None}, "its entry 'ema' is no network"),
    ("no dictionary", [1, 2], "it holds no dictionary"),
    ("a pickled string", b"\x80\x04\x8c\x05hello.", "it holds no dictionary"),
    ("SETITEM on a tensor", lambda _: dumps(tensor())[:-1] + b"K\x01K\x02s.", "SETITEM is applied to something else"),
    ("APPEND to a dictionary", PROTO + b"}K\x01a.", "APPEND is applied to something else"),
    ("an odd number of items", PROTO + b"}(X\x01\x00\x00\x00au.", "an odd number of keys and values"),
    ("SETITEMS without MARK", PROTO + b"}u.", "needs a MARK"),
    ("REDUCE of nothing", PROTO + b"R.", "from an empty stack"),
    ("GET of what was never put", PROTO + b"h\x05.", "memo entry 5 is not set"),
    ("values left on the stack", PROTO + b"}}.", "values are left on the stack"),
    ("no STOP", PROTO + b"}", "breaks off at byte 3"),
    ("an unknown opcode", PROTO + b"\xff.", "opcode 0xff has no place in a snapshot"),
    ("PROTO 255", b"\x80\xff}.", "pickle protocol 255 is not supported"),
    ("PROTO in the middle", PROTO + b"}" + PROTO + b".", "PROTO is not the first opcode"),
    ("an empty file", b"", "is empty"),
    ("one byte", b"\x80", "breaks off at byte 1"),
    ("a web page", b"<!DOCTYPE html><html>", "is no pickle, but a web page"),
    ("text", b"hello world, hello", "is no pickle: it begins with"),
    ("a torch checkpoint", b"PK\x03\x04" + bytes(30), "is no whole zip archive"),
    ("a safetensors file", (20).to_bytes(8, "little") + b'{"__metadata__":{}}' + b" " * 9, "is a safetensors file, converted already"),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is no pickle: it begins with b'version https"),
    ("a gzipped snapshot", b"\x1f\x8b\x08\x00" + bytes(30), "is no pickle: it begins with"),
    ("a directory", lambda path: path.mkdir(), "is no orbax checkpoint of this project"),
    ("a FIFO", lambda path: os.mkfifo(path), "is not a regular file"),
    ("a link to nothing", lambda path: path.symlink_to("nowhere"), "there is no such file"),
    ("a link to itself", lambda path: path.symlink_to(path.name), "cannot be opened"),
    ("a link to a device", lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    ("half of it", lambda _: good()[: len(good()) // 2], "inside a frame of"),
    ("all but its last byte", lambda _: good()[:-1], "inside a frame of"),
    ("one byte too many", lambda _: good() + b"\0", "1 bytes follow the end of its pickle"),
    ("as it should be", lambda _: good(), ACCEPT),
):  # fmt: skip
    add(MODEL, name, says, value)
