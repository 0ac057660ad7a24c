"""The PyTorch network of a snapshot: `torch_ref`'s, or the one whose source the snapshot itself carries."""

import contextlib
import functools
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from jax_edm2.torch_ref import network as torch_ref_network
from jax_edm2.torch_ref.snapshot import installed

from ...errors import ConverterError
from ...snapshot import Snapshot
from ...weights import Weights
from ..taps import Enough
from .precision import torch_dtype
from .taps import FUNCTIONS


class NetworkError(ConverterError):
    """A reference network that cannot be built or run."""


class Reference:
    """A network with a snapshot's weights, in float64 (`truth`) or in the precision that is judged (`lower`).

    net: the module. namespace: the globals of the file that defines it. raised: is it in float64?
    held: how many bytes of tensors it may hold. Of a network that has more, every module reads its own from the
    snapshot when it begins and drops them when it ends; one that reaches for those of another module fails.
    """

    def __init__(self, snapshot: Weights, kind: str, device: str, held: float = math.inf):
        self._snapshot, self._kind, self.device = snapshot, kind, torch.device("cpu")
        self._lower_device, self._most_held = torch.device(device), held
        self._hooks: list[Any] = []
        if kind == "embedded":
            if not isinstance(snapshot, Snapshot):
                raise NetworkError(
                    f"{snapshot.path}: carries no source of its network; --reference torch_ref runs ours"
                )
            self.namespace = _execute(snapshot.source)
            create: Callable = self.namespace["Precond"]
            arguments = snapshot.init_kwargs
        else:
            self.namespace = vars(torch_ref_network)
            create, arguments = torch_ref_network.Precond, snapshot.config.to_json()
        self.raised = True
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):  # no random weights: they come from the snapshot
                self.net = create(**arguments)
        except Exception as error:
            raise NetworkError(f"{snapshot.path}: the {kind} network cannot be built ({error!r:.300})") from error
        finally:
            torch.set_default_dtype(torch.float32)
        state = self.net.state_dict()
        if state.keys() != snapshot.tensors.keys():
            odd = sorted(state.keys() ^ snapshot.tensors.keys())
            raise NetworkError(f"{snapshot.path}: the {kind} network has other tensors: {odd[:4]}")
        self.net.double().eval().requires_grad_(False)
        self._fill()

    def _fill(self):
        """Give the network, which is on the device `meta`, its tensors: all of them, or each module while it runs."""
        size = sum(tensor.nbytes for tensor in self.net.state_dict().values())
        if size <= self._most_held or self.device.type != "cpu":
            self.net.to_empty(device=self.device)
            self.reload()
            return
        for name, module in self.net.named_modules():
            own = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
            if own:
                prefix = f"{name}." if name else ""
                self._hooks.append(module.register_forward_pre_hook(functools.partial(self._take, prefix, own)))
                self._hooks.append(module.register_forward_hook(functools.partial(_drop, own)))

    def _take(self, prefix: str, own: dict[str, torch.Tensor], module, _inputs):
        for name, empty in own.items():
            value = self._read(prefix + name).to(empty.dtype)
            setattr(module, name, torch.nn.Parameter(value, False) if name in module._parameters else value)

    def _read(self, name: str) -> torch.Tensor:
        """A tensor of the snapshot: float16, which torch raises much faster than numpy, or float32, which holds all."""
        value = self._snapshot.read(name)
        return torch.from_numpy(value if value.dtype == np.float16 else as_float32(value))

    def reload(self):
        """Give a network that holds its tensors the snapshot's values again."""
        with torch.no_grad():
            for name, tensor in self.net.state_dict().items():
                tensor.copy_(self._read(name))

    def truth(self):
        """A `with` statement in which the network computes in float64, whatever its source says."""
        return _float64(self.namespace)

    def lower(self):
        """From now on float32 parameters on the device of the reference."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.raised = False
        self.device = self._lower_device
        self.net.to("meta").float()
        self._fill()

    def __call__(self, x, sigma, labels, precision: str, **kwargs):
        """D, or (D, logvar) with return_logvar, of numpy arrays or tensors, in float64 or in `precision`."""
        full = torch.float64 if self.raised else torch.float32

        def put(value):
            return None if value is None else torch.as_tensor(value, dtype=full, device=self.device)

        if self._kind == "embedded":  # NVlabs' code: float16 on CUDA, or float32
            kwargs["force_fp32"] = self.raised or precision not in ("float16", "bfloat16")
            if precision == "bfloat16" or (precision == "float16" and self.device.type != "cuda" and not self.raised):
                raise NetworkError(f"NVlabs' own code does not compute in {precision} on {self.device.type}")
        elif not self.raised:
            kwargs["dtype"] = torch_dtype(precision)
        try:
            return self.net(put(x), put(sigma), put(labels), **kwargs)
        except (Enough, ConverterError, OSError):  # from those who look on
            raise
        except Exception as error:
            why = " ".join(str(error).split())
            raise NetworkError(f"{self._snapshot.path}: the {self._kind} network cannot be run ({why:.300})") from error


def _drop(own: dict[str, torch.Tensor], module, _inputs, _output):
    for name, empty in own.items():
        setattr(module, name, empty)


def as_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return array.astype(np.float32)


@contextlib.contextmanager
def _float64(namespace: dict[str, Any]) -> Iterator[None]:
    """Float64 as default dtype, and in place of torch.float32 where a network's file names that."""
    before, convolve = namespace["torch"], torch.nn.functional.conv2d
    torch.set_default_dtype(torch.float64)
    namespace["torch"] = _Float64Torch("torch")
    torch.nn.functional.conv2d = functools.partial(_conv2d, convolve)
    try:
        yield
    finally:
        torch.nn.functional.conv2d = convolve
        namespace["torch"] = before
        torch.set_default_dtype(torch.float32)


def _conv2d(convolve, x, w, *args, padding=0, stride=1, groups=1, **kwargs):
    """torch's conv2d, but large 3x3 ones as a sum of nine matmuls on shifted views: in float64 that is faster."""
    n, c, height, width = x.shape
    padding = padding[0] if isinstance(padding, tuple) and len(padding) == 1 else padding
    plain = args or kwargs or (padding, stride, groups) != (1, 1, 1) or torch.is_grad_enabled()
    if plain or w.shape[2:] != (3, 3) or min(height, width) < 24 or c < 32:
        return convolve(x, w, *args, padding=padding, stride=stride, groups=groups, **kwargs)
    row, count = width + 2, height * (width + 2)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 2)).flatten(2)  # a row more, so that every view stays inside
    kernels = w.permute(2, 3, 0, 1).reshape(9, w.shape[0], c).contiguous()
    y = x.new_zeros(n, w.shape[0], count)
    for image, result in zip(padded, y, strict=True):
        for i, kernel in enumerate(kernels):
            start = (i // 3) * row + i % 3
            result.addmm_(kernel, image[:, start : start + count])
    return y.unflatten(2, (height, row))[..., :width].contiguous()


class _Float64Torch(types.ModuleType):
    """torch, but its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


# The source inside a snapshot


def _execute(source: str) -> dict[str, Any]:
    """Run the source code of a snapshot's network and return its globals. This runs code of the snapshot's author."""
    module = types.ModuleType("edm2_embedded_source")
    sys.modules[module.__name__] = module
    try:
        with installed(_stand_ins()):
            exec(compile(source, "<source embedded in the snapshot>", "exec"), module.__dict__)
    except Exception as error:
        raise NetworkError(f"the source embedded in the snapshot cannot be run ({error!r:.300})") from error
    missing = [name for name in ("Precond", "torch", *FUNCTIONS) if name not in module.__dict__]
    if missing:
        raise NetworkError(f"the source embedded in the snapshot has no {', '.join(missing)}; use torch_ref")
    return module.__dict__


def _stand_ins() -> dict[str, types.ModuleType]:
    """What that source imports: as much of NVlabs' support modules as a network needs to compute."""
    modules = {n: types.ModuleType(n) for n in ("torch_utils", "torch_utils.persistence", "torch_utils.misc", "dnnlib")}
    modules["torch_utils.persistence"].persistent_class = lambda cls: cls  # type: ignore[attr-defined]
    modules["torch_utils.misc"].const_like = lambda x, value: torch.as_tensor(  # type: ignore[attr-defined]
        value, dtype=x.dtype, device=x.device
    )
    for name in ("persistence", "misc"):
        setattr(modules["torch_utils"], name, modules[f"torch_utils.{name}"])
    return modules
