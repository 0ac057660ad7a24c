"""Snapshots that almost are what they seem, made by hand, and whether NVlabs' code could have written them."""

import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder, StandardRGBEncoder
from jax_edm2.torch_ref.network import Block, MPConv
from jax_edm2.torch_ref.snapshot import EasyDict, SnapshotPickler, container_modules
from jax_edm2.torch_ref.training import EDM2Loss
from tests.corpora.hostile_pickles import CONFIG, HostilePickler
from tests.support.networks import network
from tests.support.unpickled import difference

TABLES = ("_parameters", "_buffers", "_modules")


class Later:
    """Fetches what was pickled before from the memo, and changes it: SETITEM, or BUILD where there is no key."""

    def __init__(self, target, key, value):
        self.target, self.key, self.value = target, key, value


class Pickler(HostilePickler):
    dispatch: ClassVar = dict(HostilePickler.dispatch)

    def _later(self, obj):
        self.write(self.get(self.memo[id(obj.target)][0]))
        if obj.key is not None:
            self.save(obj.key)
        self.save(obj.value)
        self.write(b"b" if obj.key is None else b"s")

    dispatch[Later] = _later


def dumps(value, protocol=4) -> bytes:
    file = io.BytesIO()
    slow = isinstance(value, dict) and any(isinstance(entry, Later) for entry in value.values())
    with container_modules():
        (Pickler if slow else SnapshotPickler)(file, protocol).dump(value)
    return file.getvalue()


def sound(seed: int = 0, **kwargs) -> EasyDict:
    """A snapshot's dictionary, of a tiny network that has one of everything."""
    made = network({**CONFIG, "dropout": 0.1, **kwargs}, seed).half()
    encoder = StabilityVAEEncoder() if seed % 2 else StandardRGBEncoder()
    return EasyDict(encoder=encoder, dataset_kwargs=EasyDict(), loss_fn=EDM2Loss(), ema=made)


def judge(data: bytes, path: Path) -> tuple[bool, str | None]:
    """(Do we accept it?, and if so, what torch would read otherwise)."""
    path.write_bytes(data)
    try:
        with read_snapshot(path) as snapshot:
            return True, difference(snapshot, data)
    except ConverterError:
        return False, None


# Made by hand: name, what is done to a sound snapshot, and whether NVlabs' code could have written the result.

CASES: list[tuple[str, Callable, bool]] = []


def case(name: str, legal: bool = False):
    def register(edit):
        CASES.append((name, edit, legal))
        return edit

    return register


def build(edit: Callable) -> bytes:
    data = sound()
    changed = edit(data)
    return dumps(data if changed is None else changed)


def _attribute(where, name, value, legal=False):
    """An attribute of the module at a path, set past torch's own __setattr__."""

    def edit(data):
        made = value(data) if callable(value) else value
        data["ema"].get_submodule(where).__dict__[name] = made

    text = f"something else ({len(CASES)})" if callable(value) else f"{value!r:.60}"
    CASES.append((f"{where or 'the network'}: attribute {name} = {text}", edit, legal))


def _without(where, name):
    def edit(data):
        del data["ema"].get_submodule(where).__dict__[name]

    CASES.append((f"{where or 'the network'}: no {name}", edit, False))


BLOCK, CONV = "unet.enc.8x8_block0", "unet.out_conv"
_attribute(CONV, "weight", lambda data: torch.zeros(2, 4, 3, 3).half())
_attribute(CONV, "weight", lambda data: torch.nn.Parameter(torch.ones(2, 4, 3, 3).half()))
_attribute(CONV, "forward", 5)
_attribute(CONV, "forward", lambda data: data["ema"].unet.emb_noise)
_attribute(CONV, "_call_impl", lambda data: data["ema"].unet.emb_noise)
_attribute(CONV, "training", True)
_attribute(CONV, "training", 1)
_attribute(CONV, "out_channels", 3)
_attribute(CONV, "gain", 2)
_attribute(CONV, "__class__", "Block")
_attribute("unet", "out_conv", lambda data: data["ema"].unet.enc["8x8_conv"])
_attribute("unet", "out_gain", lambda data: torch.tensor(3.0).half())
_attribute("unet", "out_gain", 3.0)
_attribute("unet", "embed", 1)
_attribute("unet", "emb_label", None)
_attribute("unet", "enc", lambda data: EasyDict(data["ema"].unet.enc._modules))
_attribute("unet", "label_balance", 0.4)
_attribute("unet", "concat_balance", True)
_attribute("unet.enc", "items", 1)
_attribute("unet.enc", "values", lambda data: {})
_attribute("unet.emb_fourier", "freqs", lambda data: torch.zeros(4).half())
_attribute(BLOCK, "conv_skip", lambda data: data["ema"].unet.dec["8x8_block0"].conv_skip)
_attribute(BLOCK, "attn_qkv", 0)
_attribute(BLOCK, "clip_act", 255)
_attribute(BLOCK, "clip_act", None)
_attribute(BLOCK, "dropout", 0.9)
_attribute(BLOCK, "flavor", "dec")
_attribute(BLOCK, "num_heads", 1)
_attribute(BLOCK, "resample_mode", "up")
_attribute(BLOCK, "resample_filter", [1, 2])
_attribute(BLOCK, "res_balance", 0.31)
_attribute("", "use_fp16", False)
_attribute("", "use_fp16", 1)
_attribute("", "sigma_data", 0.6)
_attribute("", "label_dim", True)
_attribute("", "_forward_hooks", {0: 1})
_attribute("", "_non_persistent_buffers_set", {"x"})
_attribute(BLOCK, "resample_filter", [1, 1], legal=True)
_attribute(BLOCK, "resample_filter", [1.0, np.float64(1)], legal=True)
_attribute(BLOCK, "res_balance", np.float64(0.3), legal=True)
_attribute(BLOCK, "clip_act", 256.0, legal=True)
_attribute("", "sigma_data", np.float64(0.5), legal=True)
_attribute("", "_is_full_backward_hook", False, legal=True)
for _where, _name in (
    ("", "sigma_data"), ("", "use_fp16"), ("", "label_dim"), ("", "training"), ("", "_modules"), ("unet", "_buffers"),
    ("unet", "concat_balance"), (BLOCK, "clip_act"), (BLOCK, "dropout"), (BLOCK, "conv_skip"), (CONV, "training"),
    (CONV, "_parameters"), (CONV, "_forward_hooks"), (BLOCK, "num_heads"),
):  # fmt: skip
    _without(_where, _name)


@case("a weight among parameters and buffers")
def _(data):
    conv = data["ema"].unet.out_conv
    conv._buffers["weight"] = conv.weight.detach() * 2


@case("a weight among parameters and modules")
def _(data):
    conv = data["ema"].unet.out_conv
    conv._modules["weight"] = data["ema"].unet.emb_noise


@case("SETITEM on a ModuleDict after it was built")
def _(data):
    unet = data["ema"].unet
    data["later"] = Later(unet.dec, "8x8_block1", unet.dec["8x8_block0"])


@case("SETITEM on the other ModuleDict after it was built")
def _(data):
    unet = data["ema"].unet
    data["later"] = Later(unet.enc, "8x8_up", unet.dec["8x8_up"])


@case("a table of modules filled after its module was made")
def _(data):
    unet = data["ema"].unet
    data["later"] = Later(unet._modules, "extra", unet.out_conv)


@case("a table of parameters filled after its module was made")
def _(data):
    conv = data["ema"].unet.out_conv
    weight = conv._parameters.pop("weight")
    data["later"] = Later(conv._parameters, "weight", weight)


@case("the constructor's arguments changed after the network was made")
def _(data):
    data["later"] = Later(data["ema"]._init_kwargs, "sigma_data", 0.6)


@case("a list of the constructor's arguments changed later")
def _(data):
    data["ema"]._init_kwargs["attn_resolutions"] = resolutions = {}
    data["later"] = Later(resolutions, "4", 1)


@case("BUILD of a ModuleDict for the second time")
def _(data):
    data["later"] = Later(data["ema"].unet.dec, None, {"training": False})


@case("blocks of the decoder in another order")
def _(data):
    dec = data["ema"].unet.dec
    dec.__dict__["_modules"] = dict(reversed(dec._modules.items()))


@case("two blocks of the encoder exchanged")
def _(data):
    modules = data["ema"].unet.enc._modules
    a, b = list(modules)[-2:]
    modules[a], modules[b] = modules[b], modules[a]


@case("an EasyDict as a module")
def _(data):
    conv = data["ema"].unet.out_conv
    data["ema"].unet._modules["out_conv"] = EasyDict(vars(conv))


@case("a plain dictionary as a module")
def _(data):
    data["ema"].unet._modules["dec"] = dict(data["ema"].unet.dec._modules)


@case("a module of the wrong class")
def _(data):
    data["ema"].unet.out_conv.__class__ = Block


@case("a Fourier layer that is a convolution")
def _(data):
    data["ema"].unet.emb_fourier.__class__ = MPConv


@case("a ModuleDict as a convolution")
def _(data):
    made = torch.nn.ModuleDict()
    made.__dict__.update(vars(data["ema"].unet.out_conv))
    data["ema"].unet._modules["out_conv"] = made


@case("a hidden conv_skip")
def _(data):
    block = data["ema"].unet.enc["8x8_block0"]
    del block.__dict__["conv_skip"]
    block._modules["conv_skip"] = MPConv(4, 4, [1, 1]).half()


@case("a module too many")
def _(data):
    data["ema"].unet.add_module("extra", MPConv(4, 4, [1, 1]).half())


@case("one module in two places")
def _(data):
    convs = data["ema"].unet.enc["8x8_block0"]
    convs._modules["conv_res1"] = convs._modules["conv_res0"]


@case("one tensor in two places")
def _(data):
    convs = data["ema"].unet.enc["8x8_block0"]
    convs.conv_res1._parameters["weight"] = convs.conv_res0._parameters["weight"]


@case("a network that is another's part")
def _(data):
    data["ema"] = EasyDict(ema=data["ema"])


@case("a ModuleDict as the file's dictionary")
def _(data):
    made = torch.nn.ModuleDict()
    made.__dict__.update(data)
    return made


@case("arguments in a ModuleDict")
def _(data):
    made = torch.nn.ModuleDict()
    made.__dict__.update(CONFIG)
    data["ema"]._init_kwargs = made


@case("a number of an encoder that is a half")
def _(data):
    data["ema"].__dict__["sigma_data"] = np.float16(0.5)


@case("an encoder whose method is hidden")
def _(data):
    data["encoder"].__dict__["decode"] = 5


@case("an encoder that is a network")
def _(data):
    data["encoder"] = data["ema"].unet


@case("an encoder that is a dictionary")
def _(data):
    data["encoder"] = EasyDict()


@case("numpy numbers and ranges as arguments", legal=True)
def _(data):
    data["ema"]._init_kwargs = {
        **CONFIG, "channel_mult": range(1, 3), "dropout": np.float64(0.1), "img_channels": np.int64(2),
        "use_fp16": np.bool_(True), "attn_resolutions": (np.int32(4),),
    }  # fmt: skip


@case("arguments by position", legal=True)
def _(data):
    kwargs = dict(data["ema"]._init_kwargs)
    data["ema"]._init_args = tuple(kwargs.pop(name) for name in ("img_resolution", "img_channels", "label_dim"))
    data["ema"]._init_kwargs = EasyDict(kwargs)


@case("channels last", legal=True)
def _(data):
    data["ema"].to(memory_format=torch.channels_last)


@case("tensors of every dtype", legal=True)
def _(data):
    unet = data["ema"].unet
    unet.out_conv.double()
    unet.emb_noise.float()
    unet.enc["8x8_block0"].bfloat16()


@case("None among modules, as FACTS have it", legal=True)
def _(data):
    block = data["ema"].unet.enc["8x8_block0"]
    block._modules["conv_skip"] = block.__dict__.pop("conv_skip")


@case("tables as torch up to 2.2 has them", legal=True)
def _(data):
    for module in data["ema"].modules():
        for table in TABLES:
            module.__dict__[table] = OrderedDict(module.__dict__[table])


@case("hooks that older torch does not have", legal=True)
def _(data):
    for module in data["ema"].modules():
        for name in ("_backward_pre_hooks", "_forward_hooks_always_called", "_state_dict_pre_hooks"):
            del module.__dict__[name]


@case("a plain tensor as a parameter", legal=True)
def _(data):
    conv = data["ema"].unet.out_conv
    conv._parameters["weight"] = conv.weight.detach()


@case("balances outside of 0 to 1", legal=True)
def _(data):
    return sound(label_balance=1.3, concat_balance=-0.2, res_balance=-0.5, attn_balance=2)


@case("no encoder", legal=True)
def _(data):
    data["encoder"] = None


@case("as it should be", legal=True)
def _(data):
    pass
