"""The detectors of FID and FD-DINOv2 in PyTorch, as pytorch-fid and timm have them, with random weights."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from jax_edm2.evaluation import Detector, DINOv2
from tests.support import vision  # noqa: F401  before torchvision

from pytorch_fid import inception as fid  # isort: skip

TINY = DINOv2(width=32, depth=2, heads=2, trained=5, patches=3)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torch_inception(seed: int = 0) -> torch.nn.Module:
    """pytorch-fid's network of FID, whose weights give activations of one size in every layer."""
    with (
        mock.patch.object(fid, "load_state_dict_from_url", return_value={}),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        network = fid.fid_inception_v3().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("conv.weight"):
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.5)
            elif name.endswith(("bn.bias", "running_mean")):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return network


def torch_inception_features(network: torch.nn.Module, pictures: np.ndarray, dtype=torch.float64) -> np.ndarray:
    """Of uint8 [N, 3, H, W], resized as NVlabs' network does it: by a grid of points, moved by half of the pixels."""
    with mock.patch.object(fid, "fid_inception_v3", return_value=network):
        blocks = fid.InceptionV3().to(dtype).blocks
    with torch.no_grad():
        x = (torch_resize_linear(torch.from_numpy(pictures).to(dtype)) - 128) / 128
        for block in blocks:
            x = block(x)
    return x[:, :, 0, 0].numpy()


def torch_resize_linear(x: torch.Tensor, size: int = 299) -> torch.Tensor:
    height, width = x.shape[2:]
    theta = torch.eye(2, 3, dtype=x.dtype)
    theta[0, 2], theta[1, 2] = 1 / width - 1 / size, 1 / height - 1 / size
    grid = F.affine_grid(theta.repeat(len(x), 1, 1), [*x.shape[:2], size, size], align_corners=False)
    return F.grid_sample(x, grid, "bilinear", "border", align_corners=False)


def vit_tensors(vit: DINOv2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random ones, and the token that is in DINOv2's files without being used."""
    rng, found = np.random.default_rng(seed), {"mask_token": np.zeros((1, vit.width), np.float32)}
    for name, shape in vit.tensors().items():
        if name.endswith("gamma"):
            value = rng.uniform(0.1, 0.5, shape)
        elif "norm" in name and name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 2 or name == "patch_embed.proj.weight":
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        else:
            value = rng.standard_normal(shape) * 0.3
        found[name] = value.astype(np.float32)
    return found


def torch_vit(vit: DINOv2, tensors: dict[str, np.ndarray], dtype=torch.float64) -> Callable[[np.ndarray], np.ndarray]:
    """Features of uint8 pictures, by timm's transformer, with positions that torch resizes as DINOv2's code asks to."""
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=vit.size, patch_size=vit.patch, embed_dim=vit.width, depth=vit.depth, num_heads=vit.heads,
        init_values=1.0, num_classes=0, global_pool="token",
    ).to(dtype).eval()  # fmt: skip
    given = {name: torch.from_numpy(value).to(dtype) for name, value in tensors.items() if name != "mask_token"}
    position = given["pos_embed"]
    grid = position[:, 1:].reshape(1, vit.trained, vit.trained, vit.width).permute(0, 3, 1, 2)
    ratio = (vit.patches + 0.1) / vit.trained
    grid = F.interpolate(grid, scale_factor=(ratio, ratio), mode="bicubic", antialias=False)
    given["pos_embed"] = torch.cat([position[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, vit.width)], dim=1)
    network.load_state_dict(given)
    mean, std = (torch.tensor(values, dtype=dtype).reshape(1, 3, 1, 1) for values in (MEAN, STD))

    def features(pictures: np.ndarray) -> np.ndarray:
        x = torch_resize_cubic(torch.from_numpy(pictures).to(dtype), vit.size) / 255
        with torch.no_grad():
            return network((x - mean) / std).numpy()

    return features


def torch_resize_cubic(x: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)


def tiny_detector(metric: str, given: str | None, fetching: object):
    """In place of `find_detector`: a transformer of two blocks, whatever is asked for."""
    from jax_edm2.converter.detectors import Found

    return Found(Detector.of("fd_dinov2", vit_tensors(TINY), vit=TINY), "tiny", "0" * 64)


class Node(torch.nn.Module):
    """Tensors and modules by dotted names, as NVlabs' Inception has them."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        inner: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = value
            elif first == "weight":
                self.register_parameter(first, torch.nn.Parameter(value))
            else:
                self.register_buffer(first, value)
        for name, part in inner.items():
            self.add_module(name, Node(part))


def as_nvlabs_has_it(tensors: dict[str, np.ndarray]) -> Node:
    """A module of pytorch-fid's tensors under NVlabs' names."""
    from jax_edm2.converter.detectors import NVLABS_NAMES

    given = {name: np.array(tensors[ours]) for name, ours in NVLABS_NAMES.items() if ours in tensors}
    return Node({name: torch.from_numpy(value) for name, value in given.items()})


def write_nvlabs_pickle(path, module: torch.nn.Module):
    """As stylegan3's code pickles a network: Node is a persistent class, of which the rest is torch's."""
    from jax_edm2.torch_ref.snapshot import SnapshotPickler, _reconstruct_persistent_obj, container_modules

    class Pickler(SnapshotPickler):
        def reducer_override(self, obj):
            if type(obj) is not Node:
                return NotImplemented
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": "Node"}
            return _reconstruct_persistent_obj, ({**meta, "state": obj.__getstate__()},), None

    with open(path, "wb") as file, container_modules():
        Pickler(file, protocol=4).dump(module)
