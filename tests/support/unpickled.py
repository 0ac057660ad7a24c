"""Snapshots as Python's own unpickler and torch's own modules read them, and what then runs: to be held beside ours.

NVlabs' classes are stood in for by torch_ref's, which have their attributes; source that a file embeds is never run.
Only for files that our reader has accepted: this one trusts them.
"""

import io
import pickle
import struct
from collections import OrderedDict

import numpy as np
import torch

from jax_edm2.converter.snapshot import Snapshot
from jax_edm2.torch_ref import encoders, network, training

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}
TOLERANCE = 1e-5  # of D; 6e-7 is measured between memory formats, and a wrong network is 1e-3 off at least


class EasyDict(dict):
    """As NVlabs' dnnlib has it."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self[name] = value


def reconstruct(meta):
    """What NVlabs' persistence does with a pickled object."""
    meta = EasyDict(meta)
    meta.state = EasyDict(meta.state)
    if meta.version != 6 or meta.type != "class":
        raise pickle.UnpicklingError("another persistence")
    cls = next(vars(m)[meta.class_name] for m in (network, training, encoders) if meta.class_name in vars(m))
    made = torch.nn.Module.__new__(cls) if issubclass(cls, torch.nn.Module) else object.__new__(cls)
    setstate = getattr(made, "__setstate__", None)
    if setstate is not None:
        setstate(meta.state)
    else:
        made.__dict__.update(meta.state)
    made.__dict__[SOURCE] = meta.module_src
    return made


SOURCE = "(source)"


class Nested(pickle.Unpickler):
    """The pickles inside of a storage in torch's older layout."""

    def find_class(self, module, name):
        if module != "torch" or name not in STORAGES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return STORAGES[name]

    def persistent_load(self, pid):
        return pid


def load_from_bytes(data):
    """A storage: (its elements as a flat tensor, where it was)."""
    file = io.BytesIO(data)
    if (Nested(file).load(), Nested(file).load()) != (0x1950A86A20F9469CFC6C, 1001):
        raise pickle.UnpicklingError("not torch's older layout")
    Nested(file).load()
    _, dtype, key, location, numel, view = Nested(file).load()
    if Nested(file).load() != [key] or view is not None:
        raise pickle.UnpicklingError("not one plain storage")
    (count,) = struct.unpack("<q", file.read(8))
    if count != numel:
        raise pickle.UnpicklingError("two sizes")
    elements = bytearray(file.read(numel * dtype.itemsize))
    flat = torch.frombuffer(elements, dtype=dtype) if numel else torch.empty(0, dtype=dtype)
    return flat.to(torch.device(location.replace("cuda", "cpu").split(":")[0])), location


def rebuild_tensor(storage, offset, size, stride, requires_grad, hooks, *more):
    if more or hooks:
        raise pickle.UnpicklingError("more than a plain tensor")
    return torch.as_strided(storage[0], size, stride, offset).detach().requires_grad_(requires_grad)


def rebuild_parameter(data, requires_grad, hooks):
    if hooks:
        raise pickle.UnpicklingError("hooks")
    return torch.nn.Parameter(data, requires_grad)


class Unpickler(pickle.Unpickler):
    """Python's, with the few names that a snapshot needs."""

    NAMES = {  # noqa: RUF012
        ("dnnlib.util", "EasyDict"): EasyDict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): reconstruct,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("builtins", "range"): range,
        ("torch.nn.modules.container", "ModuleDict"): torch.nn.ModuleDict,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch.storage", "_load_from_bytes"): load_from_bytes,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) in self.NAMES:
            return self.NAMES[module, name]
        if module.startswith(("numpy._core.", "numpy.core.")):
            module = module.replace("numpy.core.", "numpy._core.")
            if (module, name) in (
                ("numpy._core.multiarray", "_reconstruct"),
                ("numpy._core.multiarray", "scalar"),
                ("numpy._core.numeric", "_frombuffer"),
            ):
                return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def load(data: bytes):
    """The dictionary of a snapshot, its networks torch modules."""
    return Unpickler(io.BytesIO(data)).load()


def difference(snapshot: Snapshot, data: bytes) -> str | None:
    """What of a snapshot Python and torch read otherwise than we do, or None: tensors, outputs, encoder and loss."""
    try:
        top = load(data)
        return _difference(snapshot, top)
    except Exception as error:  # the other side cannot read or run it: neither should we
        return f"torch raises {error!r:.200}"


@torch.no_grad()
def _difference(snapshot: Snapshot, top) -> str | None:
    found, config = top["ema"], snapshot.config
    wanted = network.Precond(**config.to_json()).eval().requires_grad_(False)
    state, ours = found.state_dict(), {name: snapshot.read(name) for name in snapshot.tensors}
    if state.keys() != ours.keys() or state.keys() != wanted.state_dict().keys():
        return f"other tensors: {sorted(state.keys() ^ ours.keys())}"
    for name, tensor in state.items():
        bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        if bits != ours[name].tobytes() or tuple(tensor.shape) != ours[name].shape:
            return f"{name} has other values"
        wanted.get_parameter(name).copy_(tensor.float()) if name in dict(wanted.named_parameters()) else (
            wanted.get_buffer(name).copy_(tensor.float())
        )
    for name, module in found.named_modules():
        if module.training or any(value for key, value in vars(module).items() if "_hooks" in key):
            return f"{name} is in training mode, or has hooks"
        if vars(module).get(SOURCE, snapshot.source) != snapshot.source:
            return f"{name} has source of its own"
    if found.use_fp16 is not config.use_fp16:
        return "use_fp16"
    random = torch.Generator().manual_seed(0)
    size = config.img_resolution
    x = torch.randn(2, config.img_channels, size, size, generator=random) * 2
    labels = torch.eye(config.label_dim)[:2].expand(2, -1) if config.label_dim else None
    arguments = x, torch.tensor([0.3, 4.0]), labels
    for one, other in zip(
        found.float()(*arguments, return_logvar=True), wanted(*arguments, return_logvar=True), strict=True
    ):
        finite = torch.isfinite(other)
        if not torch.equal(finite, torch.isfinite(one)):
            return "D or logvar is finite elsewhere"
        if float((one - other)[finite].norm()) > TOLERANCE * float(other[finite].norm()):
            return f"D or logvar is {float((one - other)[finite].norm() / other[finite].norm()):.1e} off"
    return _beside(snapshot, top)


def _beside(snapshot: Snapshot, top) -> str | None:
    """What of encoder and loss is read otherwise."""
    encoder, record = top.get("encoder"), snapshot.encoder
    if (encoder is None) != (record is None):
        return "an encoder"
    if record is not None:
        if type(encoder).__name__ != record.kind:
            return "another encoder"
        for name in ("scale", "bias"):
            value = getattr(encoder, name, None)
            if (value is None) != (getattr(record, name) is None):
                return f"the encoder's {name}"
            if value is not None and not np.array_equal(np.float64(value), np.float64(getattr(record, name))):
                return f"the encoder's {name}"
        if getattr(encoder, "vae_name", None) != record.vae:
            return "the encoder's VAE"
    loss = top.get("loss_fn")
    if snapshot.loss is not None:
        values = snapshot.loss.P_mean, snapshot.loss.P_std, snapshot.loss.sigma_data
        if values != (loss.P_mean, loss.P_std, loss.sigma_data):
            return "the loss"
    return None
