"""Writes network snapshots in the container of NVlabs/edm2, and random ones of any published size.

    python -m jax_edm2.torch_ref.snapshot edm2-img512-s -o random-s.pkl

The container (NVlabs/edm2, `training_loop.py` and `torch_utils/persistence.py`): a pickle of a dict with the keys
encoder, dataset_kwargs, loss_fn and ema. Every object of a class of ours is stored as a call of
`torch_utils.persistence._reconstruct_persistent_obj` with {type, version: 6, module_src, class_name, state}, where
module_src is the complete source of the class's module, so that NVlabs' loader needs no file of ours.
"""

import argparse
import contextlib
import copy
import functools
import inspect
import pickle
import sys
import types

import torch

from . import encoders, network, training

PERSISTENT = (network, training, encoders)
VERSION = 6

SIZES = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}  # model_channels
DATASETS = {
    "img512": ({"img_resolution": 64, "img_channels": 4}, {"P_mean": -0.4, "P_std": 1.0}),
    "img64": ({"img_resolution": 64, "img_channels": 3}, {"P_mean": -0.8, "P_std": 1.6}),
}


class EasyDict(dict):
    """Stands for `dnnlib.util.EasyDict` in a pickle."""

    __module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta):
    raise NotImplementedError("only named in pickles; NVlabs' torch_utils.persistence has the real one")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextlib.contextmanager
def container_modules():
    """While open, the two globals above can be pickled by the names that NVlabs' loader knows them under."""
    modules = {name: types.ModuleType(name) for name in ("dnnlib", "torch_utils")}
    for item in (EasyDict, _reconstruct_persistent_obj):
        modules[item.__module__] = types.ModuleType(item.__module__)
        setattr(modules[item.__module__], item.__name__, item)
    with installed(modules):
        yield


@contextlib.contextmanager
def installed(modules):
    """While open, `modules`, by name, are what import statements find; then what was there before."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@functools.cache
def source_of(module):
    return inspect.getsource(module)


class SnapshotPickler(pickle.Pickler):
    """Pickles instances of this package's classes as NVlabs' persistent objects."""

    def reducer_override(self, obj):
        module = sys.modules.get(type(obj).__module__)
        if module not in PERSISTENT:
            return NotImplemented
        state = obj.__getstate__() if hasattr(type(obj), "__getstate__") else obj.__dict__
        state = {"_init_args": (), "_init_kwargs": {}, **(state or {})}
        meta = {
            "type": "class",
            "version": VERSION,
            "module_src": source_of(module),
            "class_name": type(obj).__name__,
            "state": state,
        }
        return _reconstruct_persistent_obj, (meta,), None


def write_snapshot(path, net, *, encoder=None, loss_fn=None, dataset_kwargs=None, dtype=torch.float16, protocol=4):
    """Write `net`, a `torch_ref.network.Precond`, as a snapshot file, its parameters and buffers cast to `dtype`.

    The network itself is left as it is. encoder and loss_fn default to those of NVlabs' pixel networks.
    """
    ema = copy.deepcopy(net).cpu().eval().requires_grad_(False).to(dtype)
    data = EasyDict(
        encoder=encoder or encoders.StandardRGBEncoder(),
        dataset_kwargs=EasyDict(dataset_kwargs or {}),
        loss_fn=loss_fn or training.EDM2Loss(),
        ema=ema,
    )
    with open(path, "wb") as file, container_modules():
        SnapshotPickler(file, protocol=protocol).dump(data)


@torch.no_grad()
def randomize(net, seed=0):
    """Give every parameter a random value, in place; gains, which start at 0 and would hide bugs, get 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.ndim:
            parameter.normal_(generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    for name, buffer in net.named_buffers():
        buffer.normal_(generator=generator) if name.endswith("freqs") else buffer.uniform_(generator=generator)
        buffer.mul_(2 * torch.pi)
    return net


def published_config(name):
    """Constructor arguments of a published network, and of its loss: edm2-img512-s, edm2-img64-xl-uncond, ..."""
    parts = name.split("-")
    if parts[0] != "edm2" or len(parts) not in (3, 4) or parts[1] not in DATASETS or parts[2] not in SIZES:
        raise ValueError(f"no published network {name!r}; try edm2-{{{','.join(DATASETS)}}}-{{{','.join(SIZES)}}}")
    if parts[3:] not in ([], ["uncond"]):
        raise ValueError(f"unknown suffix in {name!r}; only -uncond is known")
    shape, loss = DATASETS[parts[1]]
    channels = SIZES[parts[2]]
    config = {
        **shape,
        "label_dim": 0 if parts[3:] else 1000,
        "model_channels": channels,
        "dropout": 0.1 if channels >= SIZES["m"] else 0.0,
    }
    return config, loss


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m jax_edm2.torch_ref.snapshot",
        description="Write a snapshot of a published size with random weights.",
    )
    parser.add_argument("name", help="edm2-img512-s, edm2-img64-xl, edm2-img512-xs-uncond, ...")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        config, loss = published_config(args.name)
        with open(args.output, "ab"):  # fail before the work, not after it
            pass
    except (ValueError, OSError) as error:
        parser.error(str(error))
    net = randomize(network.Precond(**config).requires_grad_(False), args.seed).to(torch.float16)
    latent = config["img_channels"] == 4
    encoder = encoders.StabilityVAEEncoder() if latent else encoders.StandardRGBEncoder()
    write_snapshot(args.output, net, encoder=encoder, loss_fn=training.EDM2Loss(**loss))


if __name__ == "__main__":
    main()
