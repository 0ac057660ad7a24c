"""Moments of pictures that come in any parts, on any number of devices, do not depend on it."""

import jax
import numpy as np
import pytest

from jax_edm2.evaluation import Detector, Gathering, Moments, merged
from tests.support.detectors import TINY, vit_tensors


@pytest.fixture(scope="module")
def detector():
    return Detector.of("fd_dinov2", vit_tensors(TINY), vit=TINY)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (101, 3, 16, 16), np.uint8)


def gathered(detector, parts, devices=None, batch=8):
    gathering = Gathering([detector], batch, devices)
    for part in parts:
        gathering.add(part)
    gathering.settle()
    return gathering


def same(one: Moments, other: Moments):
    return one.count == other.count and all(
        np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(a)
        for a, b in ((one.total, other.total), (one.outer, other.outer))
    )


def test_parts_and_devices(detector, images):
    whole = gathered(detector, [images], jax.devices()[:1])
    assert whole.count == whole.moments["fd_dinov2"].count == 101
    features = np.asarray(detector.features(detector.params, images), np.float64)
    moments = whole.moments["fd_dinov2"]
    np.testing.assert_allclose(moments.total, features.sum(axis=0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(moments.outer, features.T @ features, rtol=1e-4, atol=1e-3)
    for parts, devices in (([images], None), (np.array_split(images, 17), None), (images[:, None], jax.devices()[1:])):
        assert same(gathered(detector, parts, devices).moments["fd_dinov2"], moments)


def test_goes_on_after_settling(detector, images):
    gathering = gathered(detector, [images[:37]])
    assert gathering.count == 37
    packed = gathering.moments["fd_dinov2"].packed()
    later = Gathering([detector], 8)
    later.moments["fd_dinov2"] = Moments.unpacked(packed, TINY.width)
    later.add(images[37:])
    later.settle()
    assert same(later.moments["fd_dinov2"], gathered(detector, [images]).moments["fd_dinov2"])


def test_grey_pictures_are_three_alike(detector, images):
    grey = images[:9, :1]
    assert same(
        gathered(detector, [grey]).moments["fd_dinov2"],
        gathered(detector, [np.repeat(grey, 3, axis=1)]).moments["fd_dinov2"],
    )


def test_one_process_has_all(detector, images):
    moments = gathered(detector, [images[:5]]).moments
    assert merged(moments) == moments


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 4, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_what_are_no_pictures(detector, bad):
    with pytest.raises(ValueError, match="pictures are uint8"):
        Gathering([detector]).add(bad)


def test_pictures_of_two_sizes(detector, images):
    gathering = Gathering([detector])
    gathering.add(images[:3])
    with pytest.raises(ValueError, match=r"pictures are of \[16, 16\] and of \[16, 15\]"):
        gathering.add(images[:3, :, :, :15])


def test_packed_moments_that_are_none():
    good = Moments(3).packed()
    for bad in (good[:-1], np.full(13, np.nan), good - 1, good + 0.5):
        with pytest.raises(ValueError, match="no moments of 3 features"):
            Moments.unpacked(bad, 3)
