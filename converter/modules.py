"""The network object of a snapshot, checked whole: what torch's own unpickling would run, and nothing else.

NVlabs' loader puts a module's pickled state into its `__dict__` as it is, where any name hides the parameter, buffer,
submodule or method of the same name. So the list of what each module may hold is closed: its class, its constructor's
attributes with the values that the configuration gives them, its tensors, its submodules, and those in running order.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jax_edm2.config import BlockSpec, EDM2Config, check_tree
from jax_edm2.messages import brief, listing

from .errors import SnapshotError
from .formats.nvlabs import MODULE_DICT, PersistentObject
from .formats.pickle_reader import Instance
from .formats.torch_legacy import TensorRecord
from .names import jax_path, torch_name

VERSION = 6  # of NVlabs' torch_utils.persistence
ARGUMENTS = ("_init_args", "_init_kwargs")  # what a module was made with: the configuration is read from the network's
TABLES = ("_parameters", "_buffers", "_modules")
REQUIRED = (*TABLES, "training", "_forward_hooks", "_backward_hooks")  # torch gives older files the other hooks
HOOKS = (
    "_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


@dataclass(frozen=True)
class Module:
    """What a module of a network has to be. modules: in running order; None where the class has none there."""

    cls: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    modules: Mapping[str, "Module | None"] = field(default_factory=dict)


def network(config: EDM2Config) -> Module:
    """The denoiser of a configuration, as NVlabs' constructors build it."""
    architecture = config.architecture
    encoder: dict[str, Module | None] = {architecture.conv_in: _conv(config.widths[0])}
    encoder |= {spec.name: _block(config, spec) for spec in architecture.encoder}
    unet = Module(
        "UNet",
        {name: getattr(config, name) for name in ("label_balance", "concat_balance")},
        parameters=("out_gain",),
        modules={
            "emb_fourier": _fourier(),
            "emb_noise": _conv(config.emb_channels),
            "emb_label": _conv(config.emb_channels) if config.label_dim else None,
            "enc": Module(str(MODULE_DICT), modules=encoder),
            "dec": Module(str(MODULE_DICT), modules={spec.name: _block(config, spec) for spec in architecture.decoder}),
            "out_conv": _conv(config.img_channels),
        },
    )
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data")
    return Module(
        "Precond",
        {name: getattr(config, name) for name in names},
        modules={"unet": unet, "logvar_fourier": _fourier(), "logvar_linear": _conv(1)},
    )


def _block(config: EDM2Config, spec: BlockSpec) -> Module:
    shared = ("resample_filter", "dropout", "res_balance", "attn_balance", "clip_act")
    channels = spec.out_channels
    return Module(
        "Block",
        {name: getattr(config, name) for name in shared}
        | {
            "out_channels": channels,
            "flavor": spec.flavor,
            "resample_mode": spec.resample,
            "num_heads": spec.num_heads,
        },
        parameters=("emb_gain",),
        modules={
            "conv_res0": _conv(channels),
            "emb_linear": _conv(channels),
            "conv_res1": _conv(channels),
            "conv_skip": _conv(channels) if spec.in_channels != channels else None,
            "attn_qkv": _conv(3 * channels) if spec.num_heads else None,
            "attn_proj": _conv(channels) if spec.num_heads else None,
        },
    )


def _conv(out_channels: int) -> Module:
    return Module("MPConv", {"out_channels": out_channels}, parameters=("weight",))


def _fourier() -> Module:
    return Module("MPFourier", buffers=("freqs", "phases"))


def read_network(net: PersistentObject, config: EDM2Config) -> dict[str, TensorRecord]:
    """All tensors of the network that `config` describes, by NVlabs' name, in the order of the file.

    Raises: SnapshotError, which lists everything that is not as torch would need it to be for that very network.
    """
    tensors: dict[str, TensorRecord] = {}
    problems = list(_check("", net, network(config), net.source, tensors, {}))
    problems += check_tree(config, {jax_path(name): record.shape for name, record in tensors.items()}, torch_name)
    if problems:
        raise SnapshotError(f"its network is not what its constructor arguments say: {listing(problems)}")
    return tensors


def _check(
    name: str, module: Any, wanted: Module, source: str, tensors: dict[str, TensorRecord], owners: dict[int, str]
) -> Iterator[str]:
    """Everything that is wrong with a module and those below it.

    Its tensors go into `tensors`, and their names into `owners`, by where they lie in the file.
    """
    here = name or "the network"
    found = _class(module)
    if found != wanted.cls:
        yield f"! {here} is {brief(found) if found else 'no module'}, should be of class {wanted.cls}"
        return
    if isinstance(module, PersistentObject):
        if module.version != VERSION:
            yield f"! {here} was saved by persistence version {brief(module.version)}, not {VERSION}"
        if module.source != source:
            yield f"! {here} has source code of its own, other than the network's"
    state = module.state
    missing = [key for key in REQUIRED if key not in state]
    malformed = [key for key in TABLES if key in state and not isinstance(state[key], dict)]
    if missing or malformed:
        yield f"! {here} has no {brief((missing + malformed)[0])[1:-1]}, which every module has"
        return
    yield from _check_state(name, state, wanted, isinstance(module, PersistentObject))
    for table, names in (("_parameters", wanted.parameters), ("_buffers", wanted.buffers)):
        for key, record in state[table].items():
            where = _join(name, key)
            if key not in names:
                shape = f" {list(record.shape)}" if isinstance(record, TensorRecord) else ""
                yield f"+ {where}{shape} is not part of it"
            elif not isinstance(record, TensorRecord):
                yield f"! {where} is no tensor"
            elif owners.setdefault(record.data.offset, where) != where:
                yield f"! {where} is the tensor of {owners[record.data.offset]}"
            else:
                tensors[where] = record
    below = state["_modules"]
    expected = {key: child for key, child in wanted.modules.items() if child is not None}
    for key, value in below.items():
        if key not in wanted.modules or (wanted.modules[key] is None and value is not None):
            yield f"+ {_join(name, key)} is not part of it"
    if wanted.cls == str(MODULE_DICT) and below.keys() == expected.keys() and list(below) != list(expected):
        moved = next(b for a, b in zip(below, expected, strict=True) if a != b)
        yield f"! {here} does not run its blocks in their order: {_join(name, moved)} is not in its place"
    for key, child in expected.items():
        if key in below:  # what is missing is told by its tensors
            yield from _check(_join(name, key), below[key], child, source, tensors, owners)


def _class(module: Any) -> str | None:
    if isinstance(module, PersistentObject):
        return module.class_name
    return str(module.cls) if isinstance(module, Instance) and isinstance(module.state, dict) else None


def _check_state(name: str, state: dict[str, Any], wanted: Module, persistent: bool) -> Iterator[str]:
    """What a module holds beside its tables: exactly its constructor's attributes, and torch's own, at rest."""
    here = name or "the network"
    for key, value in state.items():
        where = _join(name, key)
        if key in TABLES or (key in ARGUMENTS and persistent):
            continue
        if key in HOOKS:
            if value != {}:
                yield f"! {here} has hooks ({key}), which would run code"
        elif key == "training":
            if value is not False:
                yield f"! {here} is in training mode: call .eval() before it is saved"
        elif key == "_non_persistent_buffers_set":
            if value != frozenset():
                yield f"! {where} is not empty"
        elif key == "_is_full_backward_hook":
            if value is not None and type(value) is not bool:
                yield f"! {where} is {brief(value)}, should be None"
        elif key in wanted.attributes:
            if not _equal(value, wanted.attributes[key]):
                yield f"! {where} is {brief(value)}, should be {wanted.attributes[key]!r}"
        elif key in wanted.modules and wanted.modules[key] is None and key not in state["_modules"]:
            if value is not None:
                yield f"+ {where} is not part of it"
        else:
            yield f"+ attribute {where} has no place in a {wanted.cls}: it would hide what has that name"
    yield from (f"- attribute {_join(name, key)} is missing" for key in wanted.attributes if key not in state)
    for key, below in wanted.modules.items():
        if below is None and key not in state and key not in state["_modules"]:
            yield f"- {_join(name, key)}, which is None, is missing"


def _equal(found: Any, wanted: Any) -> bool:
    """Is an attribute what the configuration says? Numbers of either kind where fractions are allowed."""
    if isinstance(wanted, tuple):
        same = isinstance(found, list | tuple) and len(found) == len(wanted)
        return same and all(map(_equal, found, wanted))
    if isinstance(wanted, bool | str) or wanted is None:
        return type(found) is type(wanted) and found == wanted
    return type(found) in (int, float) and found == wanted


def _join(name: str, key: str) -> str:
    """A name below a module's, as a person may read it, whatever the file holds."""
    key = key if re.fullmatch(r"[A-Za-z0-9_]{1,64}", key) else f"{key!a:.60}"
    return f"{name}.{key}" if name else key
