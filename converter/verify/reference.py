"""The PyTorch network of a snapshot: `torch_ref`'s, or the one whose source the snapshot itself carries."""

import hashlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from converter.errors import ConverterError
from converter.snapshot import Snapshot
from converter.verify.torch_taps import FUNCTIONS
from torch_ref import network as torch_ref_network

REFERENCES = ("torch_ref", "embedded")
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ReferenceFailure(ConverterError):
    """A reference network that cannot be built or run."""


class Reference:
    """A network with a snapshot's weights, in float64 (`truth`) or in the precision that is judged (`lower`).

    net: the module. namespace: the globals of the file that defines it. raised: is it in float64?
    """

    def __init__(self, snapshot: Snapshot, kind: str, device: str):
        self._snapshot, self._kind, self.device = snapshot, kind, torch.device("cpu")
        self._lower_device = torch.device(device)
        if kind == "embedded":
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
            raise ReferenceFailure(f"{snapshot.path}: the {kind} network cannot be built ({error!r:.300})") from error
        finally:
            torch.set_default_dtype(torch.float32)
        self.net.to_empty(device="cpu").double().eval().requires_grad_(False)
        self.reload()
        self._real_torch = self.namespace.get("torch")

    def reload(self):
        """Give the network the snapshot's values, exactly: every stored dtype fits float32."""
        state = {name: tensor for name, tensor in self.net.state_dict().items()}
        if state.keys() != self._snapshot.tensors.keys():
            odd = sorted(state.keys() ^ self._snapshot.tensors.keys())
            raise ReferenceFailure(f"{self._snapshot.path}: the {self._kind} network has other tensors: {odd[:4]}")
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(torch.from_numpy(as_float32(self._snapshot.read(name))))

    def truth(self):
        """A `with` statement in which the network computes in float64, whatever its source says."""
        return _Default(torch.float64, self.namespace)

    def lower(self):
        """From now on float32 parameters on the device of the reference."""
        self.raised = False
        self.device = self._lower_device
        self.net.float().to(self.device)
        self.reload()

    def __call__(self, x, sigma, labels, precision: str, **kwargs):
        """D, or (D, logvar) with return_logvar, of numpy arrays or tensors, in float64 or in `precision`."""
        full = torch.float64 if self.raised else torch.float32

        def put(value):
            return None if value is None else torch.as_tensor(value, dtype=full, device=self.device)

        if self._kind == "embedded":  # NVlabs' code: float16 on CUDA, or float32
            kwargs["force_fp32"] = self.raised or precision in ("float32", "tf32")
            if precision == "bfloat16" or (precision == "float16" and self.device.type != "cuda" and not self.raised):
                raise ReferenceFailure(f"NVlabs' own code does not compute in {precision} on {self.device.type}")
        elif not self.raised:
            kwargs["dtype"] = DTYPES[precision]
        return self.net(put(x), put(sigma), put(labels), **kwargs)


def as_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return array.astype(np.float32)


class _Default:
    """Float64 as default dtype, and in place of torch.float32 where a network's file names that."""

    def __init__(self, dtype, namespace):
        self._dtype, self._namespace, self._torch = dtype, namespace, namespace["torch"]

    def __enter__(self):
        torch.set_default_dtype(self._dtype)
        self._namespace["torch"] = _Float64Torch("torch")

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)
        self._namespace["torch"] = self._torch


class _Float64Torch(types.ModuleType):
    """torch, but its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


# The source inside a snapshot


def source_hash(snapshot: Snapshot) -> str:
    return f"sha256:{hashlib.sha256(snapshot.source.encode()).hexdigest()}"


def _execute(source: str) -> dict[str, Any]:
    """Run the source code of a snapshot's network and return its globals. This runs code of the snapshot's author."""
    module = types.ModuleType("edm2_embedded_source")
    stand_ins = _stand_ins()
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, "<source embedded in the snapshot>", "exec"), module.__dict__)
    except Exception as error:
        raise ReferenceFailure(f"the source embedded in the snapshot cannot be run ({error!r:.300})") from error
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    missing = [name for name in ("Precond", "torch", *FUNCTIONS) if name not in module.__dict__]
    if missing:
        raise ReferenceFailure(f"the source embedded in the snapshot has no {', '.join(missing)}; use torch_ref")
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
