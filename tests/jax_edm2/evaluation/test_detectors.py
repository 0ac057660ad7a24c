"""Features of random networks beside pytorch-fid's and timm's in float64, and resizing beside torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jax_edm2.evaluation import Detector, DINOv2, inception, resizing
from tests.support.detectors import (
    TINY,
    torch_inception,
    torch_inception_features,
    torch_resize_cubic,
    torch_resize_linear,
    torch_vit,
    vit_tensors,
)

SIZES = [(8, 8), (64, 64), (37, 301), (512, 512)]


def pictures(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8)


def relative(found, wanted):
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def network():
    return torch_inception()


@pytest.fixture(scope="module")
def weights(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
def test_resizing(size):
    x = pictures(2, *size).astype(np.float32)
    linear = resizing.resize(jnp.asarray(x), *(resizing.linear_corners(each, 299) for each in size))
    assert relative(linear, torch_resize_linear(torch.from_numpy(x).double()).numpy()) < 1e-6  # measured: 1e-7
    cubic = resizing.resize(jnp.asarray(x), *(resizing.cubic_antialias(each, 224) for each in size))
    assert relative(cubic, torch_resize_cubic(torch.from_numpy(x).double(), 224).numpy()) < 1e-6  # measured: 1.4e-7


@pytest.mark.parametrize(("trained", "patches"), [(37, 16), (5, 3), (3, 5)])
def test_positions(trained, patches):
    """The matrix itself: no antialiasing, another kernel, and the 0.1 patches."""
    ratio = (patches + 0.1) / trained
    x = np.random.default_rng(0).standard_normal((1, 2, trained, trained))
    wanted = F.interpolate(torch.from_numpy(x), scale_factor=(ratio, ratio), mode="bicubic").numpy()
    matrix = resizing.cubic(trained, patches, ratio)
    assert relative(np.einsum("ui,vj,ncij->ncuv", matrix, matrix, x), wanted) < 1e-14
    plain = F.interpolate(torch.from_numpy(x), size=(patches, patches), mode="bicubic").numpy()
    matrix = resizing.cubic(trained, patches)
    assert relative(np.einsum("ui,vj,ncij->ncuv", matrix, matrix, x), plain) < 1e-14


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_inception(network, weights, platform):
    """As a CPU computes it, and as the others do."""
    images = pictures(2, 64, 48)
    detector = Detector.of("fid", weights, platform=platform)
    found = jax.jit(detector.features)(detector.params, images)
    assert found.shape == (2, detector.size)
    assert found.dtype == jnp.float32
    wanted = torch_inception_features(network, images)
    network.float()
    assert relative(found, wanted) < 1e-5  # measured: 2.1e-7, torch's in float32 3e-7


def test_inception_without_its_scales(weights):
    """TensorFlow's network has none: they are ones."""
    layer = "Mixed_6a.branch3x3"
    without = {name: value for name, value in weights.items() if name.endswith(inception.PARTS)}
    one, other = (inception.prepare(given, "gpu")[f"{layer}.weight"] for given in (weights, without))
    np.testing.assert_array_equal(one, other)
    doubled = inception.prepare({**weights, f"{layer}.bn.weight": np.full(384, 2.0)}, "gpu")[f"{layer}.weight"]
    np.testing.assert_array_equal(doubled, 2 * one)


def test_dinov2():
    tensors, images = vit_tensors(TINY), pictures(3, 64, 64)
    detector = Detector.of("fd_dinov2", tensors, vit=TINY)
    found = jax.jit(detector.features)(detector.params, images)
    assert found.dtype == jnp.float32
    assert relative(found, torch_vit(TINY, tensors)(images)) < 1e-5  # measured: 2e-7; ViT-L/14: 8e-7


def test_published_size():
    """Of parameters. Inception has as many as torchvision's (27,161,264) without its two classifiers."""
    assert sum(int(np.prod(shape)) for shape in DINOv2().tensors().values()) == 304_367_616
    layers = inception.layers()
    assert len(layers) == 94
    assert sum(int(np.prod(layer.shape)) + 2 * layer.shape[0] for layer in layers) == 27_161_264 - 3_326_696 - 2_049_000


def test_tensors_that_are_no_detectors(weights):
    cut = {name: value for name, value in weights.items() if name != "Mixed_5b.branch1x1.conv.weight"}
    for given, said in (
        (cut, r"- Mixed_5b.branch1x1.conv.weight \[64, 192, 1, 1\] is missing"),
        (weights | {"AuxLogits.conv0.conv.weight": np.zeros(1)}, r"\+ AuxLogits.conv0.conv.weight is not part of it"),
        (weights | {"Conv2d_1a_3x3.bn.bias": np.zeros(31)}, r"! Conv2d_1a_3x3.bn.bias is \[31\], should be \[32\]"),
        (weights | {"Conv2d_1a_3x3.bn.weight": np.zeros(31)}, r"! Conv2d_1a_3x3.bn.weight is \[31\], should"),
        (weights | {"Conv2d_1a_3x3.bn.bias": np.full(32, np.nan)}, "not finite: Conv2d_1a_3x3.bn.bias"),
    ):
        with pytest.raises(ValueError, match=said):
            Detector.of("fid", given)
    with pytest.raises(ValueError, match="'is' is no metric"):
        Detector.of("is", weights)
