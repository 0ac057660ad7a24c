"""Snapshots that almost are what they seem, read by us and by Python's unpickler with torch's own modules.

    python -m tests.differential --mutants 5000        # some minutes; seeded

What we accept must be, whole, what torch's unpickling would run: same tensors, same outputs (`tests.unpickled`).
What NVlabs' code could have written must be accepted.
"""

import argparse
import io
import sys
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from converter.errors import ConverterError
from converter.snapshot import read_snapshot
from tests.hostile_pickles import CONFIG, HostilePickler
from tests.networks import network
from tests.unpickled import difference
from torch_ref.encoders import StabilityVAEEncoder, StandardRGBEncoder
from torch_ref.network import Block, MPConv
from torch_ref.snapshot import EasyDict, SnapshotPickler, container_modules
from torch_ref.training import EDM2Loss

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


# Mutants: each is given a snapshot's dictionary and a random generator, and changes something.


def _pick(rng, values):
    values = list(values)
    return values[int(rng.integers(len(values)))] if values else None


def _module(data, rng):
    modules = [module for module in data["ema"].modules() if isinstance(module, torch.nn.Module)]
    return _pick(rng, modules)


def _anything(data, rng):
    """A value of any kind that files can hold."""
    tensor = torch.from_numpy(rng.standard_normal(_pick(rng, [(), (4,), (2, 4, 3, 3), (8, 4)]))).half()
    return _pick(
        rng,
        [
            None, True, False, 0, 1, 4, 0.3, 0.5, 256, "enc", "dec", "keep", (1, 1), [1, 1], [1, 3, 3, 1], {},
            EasyDict(), tensor, torch.nn.Parameter(tensor), _module(data, rng), np.float64(0.3), np.int64(4), range(2),
            set(), OrderedDict(), vars(_module(data, rng))["_modules"], np.float32([1, 2]),
        ],
    )  # fmt: skip


def _name(data, rng):
    """A name that means something somewhere."""
    names = {key for module in data["ema"].modules() for table in (vars(module), *_tables(module)) for key in table}
    methods = ("forward", "items", "values", "__class__", "_call_impl", "skip", "attend", "to")
    return _pick(rng, [*sorted(names), *methods])


def _tables(module):
    return [vars(module)[table] for table in TABLES if isinstance(vars(module).get(table), dict)]


def set_attribute(data, rng):
    vars(_module(data, rng))[_name(data, rng)] = _anything(data, rng)


def other_value(data, rng):
    state = vars(_module(data, rng))
    state[_pick(rng, [key for key in state if key not in TABLES])] = _anything(data, rng)


def set_entry(data, rng):
    _pick(rng, _tables(_module(data, rng)))[_name(data, rng)] = _anything(data, rng)


def delete_attribute(data, rng):
    state = vars(_module(data, rng))
    state.pop(_pick(rng, state))


def delete_entry(data, rng):
    table = _pick(rng, [table for module in data["ema"].modules() for table in _tables(module) if table])
    table.pop(_pick(rng, table))


def move_entry(data, rng):
    module = _module(data, rng)
    places = [*_tables(module), vars(module)]
    source, target = _pick(rng, [place for place in places if place]), _pick(rng, places)
    key = _pick(rng, source)
    target[key] = source[key] if rng.integers(2) else source.pop(key)


def exchange_entries(data, rng):
    one, other = (
        _pick(rng, [table for module in data["ema"].modules() for table in _tables(module) if table]) for _ in range(2)
    )
    a, b = _pick(rng, one), _pick(rng, other)
    one[a], other[b] = other[b], one[a]


def reorder(data, rng):
    module = _pick(rng, [module for module in data["ema"].modules() if len(module._modules) > 1])
    keys = list(module._modules)
    rng.shuffle(keys)
    module.__dict__["_modules"] = {key: module._modules[key] for key in keys}


def reorder_state(data, rng):
    module = _module(data, rng)
    state = dict(vars(module))
    keys = list(state)
    rng.shuffle(keys)
    vars(module).clear()
    vars(module).update({key: state[key] for key in keys})


def other_class(data, rng):
    module = _module(data, rng)
    module.__class__ = type(_module(data, rng))


def other_argument(data, rng):
    kwargs = data["ema"]._init_kwargs
    data["ema"]._init_kwargs = {
        **kwargs,
        _pick(rng, [*kwargs, "dropout", "sigma_data", "use_fp16"]): _anything(data, rng),
    }


def legal_form(data, rng):
    """Arguments and attributes in other types, of the same value."""
    kwargs = dict(data["ema"]._init_kwargs)
    forms = (tuple, list, lambda value: [np.int64(v) for v in value], lambda value: range(min(value), max(value) + 1))
    kwargs["channel_mult"] = _pick(rng, forms)(kwargs["channel_mult"])
    data["ema"]._init_kwargs = EasyDict(kwargs) if rng.integers(2) else kwargs
    module = _pick(rng, [module for module in data["ema"].modules() if isinstance(module, Block)])
    module.__dict__["res_balance"] = np.float64(module.res_balance)


def legal_tensor(data, rng):
    module = _pick(rng, [module for module in data["ema"].modules() if module._parameters])
    form = _pick(rng, [torch.bfloat16, torch.float64, torch.float32, None])
    if form is None:
        for parameter in module._parameters.values():
            if isinstance(parameter, torch.Tensor) and parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    else:
        module.to(form)


def other_strides(data, rng):
    for parameter in _module(data, rng)._parameters.values():
        if isinstance(parameter, torch.Tensor) and parameter.ndim > 1:
            parameter.data = parameter.data.transpose(0, 1)


def later(data, rng):
    """Something that has been pickled is fetched again, and changed."""
    module = _module(data, rng)
    target = _pick(rng, [*_tables(module), module._init_kwargs if "_init_kwargs" in vars(module) else module])
    data["later"] = Later(target, _pick(rng, [None, _name(data, rng)]), _anything(data, rng))


def beside(data, rng):
    """Encoder and loss."""
    entry = data[_pick(rng, ["encoder", "loss_fn"])]
    if hasattr(entry, "__dict__") and rng.integers(4):
        vars(entry)[_pick(rng, [*vars(entry), "decode", "scale", "bias", "_vae", "encode"])] = _anything(data, rng)
    else:
        data[_pick(rng, ["encoder", "loss_fn"])] = _anything(data, rng)


MUTATIONS = (
    set_attribute, other_value, set_entry, delete_attribute, delete_entry, move_entry, exchange_entries, reorder,
    reorder_state, other_class, other_argument, legal_form, legal_tensor, other_strides, later, beside,
)  # fmt: skip


def mutants(count: int, seed: int, report=lambda done: None) -> tuple[Counter, list[str]]:
    """How many of each kind were refused and accepted, and every one that we read otherwise than torch does."""
    rng = np.random.default_rng(seed)
    outcomes: Counter = Counter()
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.pkl"
        for done in range(count):
            mutation = MUTATIONS[done % len(MUTATIONS)]
            name = mutation.__name__
            kind = _pick(rng, [{}, {"label_dim": 0}, {"channel_mult": [2, 1]}, {"clip_act": None}])
            base = sound(done % 2, num_blocks=0, **kind)
            try:
                mutation(base, rng)
                if not rng.integers(3):
                    _pick(rng, MUTATIONS)(base, rng)
                data = dumps(base, int(_pick(rng, [3, 4, 5])))
            except Exception:  # torch or the pickler refuse to make it
                outcomes[name, "not made"] += 1
                continue
            try:
                accepted, wrong = judge(data, path)
            except Exception as error:
                accepted, wrong = False, f"raises {error!r:.200}"
            outcomes[name, "accepted" if accepted else "refused"] += 1
            if wrong:
                problems.append(f"mutant {done} of seed {seed} ({name}): {wrong}")
            report(done + 1)
    return outcomes, problems


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for name, edit, legal in CASES:
            accepted, wrong = judge(build(edit), Path(folder) / "case.pkl")
            if wrong or accepted != legal:
                problems.append(f"{name}: {wrong or ('refused', 'accepted')[accepted]}")

    def report(done):
        if done % 100 == 0 and sys.stderr.isatty():
            print(f"\r{done:,}", end="", file=sys.stderr)

    outcomes, found = mutants(args.mutants, args.seed, report)
    problems += found
    kinds = ("refused", "accepted", "not made")
    print(f"{'mutation':16}" + "".join(f"{kind:>10}" for kind in kinds))
    for mutation in MUTATIONS:
        print(f"{mutation.__name__:16}" + "".join(f"{outcomes[mutation.__name__, kind]:10,}" for kind in kinds))
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{len(CASES)} cases and {args.mutants:,} mutants: {len(problems)} that torch would read otherwise")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
