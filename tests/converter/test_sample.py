"""What edm2-sample does, as one call: it prints nothing, and tells its caller what there is to tell."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import jax_edm2
from jax_edm2.converter.drawing_request import resolve
from jax_edm2.converter.errors import SampleError, UsageError
from jax_edm2.converter.sample import SampleRequest, sample
from jax_edm2.converter.sources import Fetching
from jax_edm2.record import Sampler
from jax_edm2.settings import Settings
from tests.support.listener import Listener


def test_pictures(digits_pkl, digits_guide_pkl, tmp_path, capfd):
    listener = Listener()
    request = SampleRequest(
        tmp_path, net=str(digits_pkl), gnet=str(digits_guide_pkl), guidance=1.5, seeds=range(3), num_steps=1, grid=True
    )
    precision = jax.config.values["jax_default_matmul_precision"]
    report = sample(request, warn=listener.warnings.append, progress=listener.show)
    assert capfd.readouterr() == ("", "")
    assert jax.config.values["jax_default_matmul_precision"] == precision  # which is the caller's
    assert (report.written, report.skipped, report.sheet) == (3, 0, tmp_path / "grid.png")
    assert listener.progress == [[str(tmp_path), 3, 3]]
    assert listener.warnings == []
    assert (report.about["guide"]["name"], report.about["settings"]["guidance"]) == ("digits-guide.pkl", 1.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "000001.png", "000002.png", "grid.png"]
    again = SampleRequest(tmp_path, net=str(digits_pkl), seeds=range(4), num_steps=1, skip_existing=True)
    with pytest.raises(
        SampleError, match=r"were made otherwise: guide digits-guide.pkl \(4123ae2a\), not none; guidance"
    ):
        sample(again)
    steps = Listener()
    again = dataclasses.replace(request, seeds=range(4), skip_existing=True)
    report = sample(again, warn=listener.warnings.append, progress=listener.show, steps=steps.show)
    assert (report.written, report.skipped) == (1, 3)
    assert listener.progress[1:] == [[str(tmp_path), 1, 1]]
    assert [row[:2] for row in steps.progress] == [["digits.pkl", 1]]  # a thread says when one is done
    assert listener.warnings == []
    Image.open(tmp_path / "000003.png").load()


def test_a_network_that_guides_itself_wants_no_other(digits, digits_checkpoint, tmp_path):
    """Though its checkpoint names one."""
    record = dataclasses.replace(
        jax_edm2.read_record(digits_checkpoint), sampler=Sampler(guidance=1.5, guide="no.such")
    )
    jax_edm2.save(tmp_path / "net.safetensors", *digits, record=record)
    request = SampleRequest(tmp_path, net=str(tmp_path / "net.safetensors"), guidance=3.0, unconditional=True)
    found = resolve(request)
    assert (found.guide, found.settings.guidance, found.settings.unconditional) == (None, 3.0, True)


def test_a_checkpoint_says_how_it_is_sampled(digits, digits_checkpoint, tmp_path):
    """Where the request says nothing."""
    recorded = Sampler(num_steps=3, sigma_min=0.01, sigma_max=20.0, rho=5.0)
    record = dataclasses.replace(jax_edm2.read_record(digits_checkpoint), sampler=recorded)
    path = tmp_path / "own.safetensors"
    jax_edm2.save(path, *digits, record=record)
    found = resolve(SampleRequest(tmp_path, net=str(path))).settings
    assert found == Settings(num_steps=3, sigma_min=0.01, sigma_max=20.0, rho=5.0)
    assert resolve(SampleRequest(tmp_path, net=str(path), num_steps=8, rho=7.0)).settings == Settings(
        num_steps=8, sigma_min=0.01, sigma_max=20.0
    )
    assert resolve(SampleRequest(tmp_path, net=str(digits_checkpoint))).settings == Settings()


def test_values_that_are_not_finite(digits, digits_checkpoint, tmp_path, capfd):
    """Nothing is drawn, nothing is left, and how far it came is told."""
    net, variables = digits
    huge = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    huge["params"]["unet"]["out_gain"] = np.float32(3e38)
    jax_edm2.save(tmp_path / "huge.safetensors", net, huge, record=jax_edm2.read_record(digits_checkpoint))
    listener = Listener()
    request = SampleRequest(tmp_path / "out", net=str(tmp_path / "huge.safetensors"), seeds=(5, 6), num_steps=1)
    with pytest.raises(SampleError, match="NaN or infinite for seed 5"):
        sample(request, progress=listener.show)
    assert listener.progress == [[str(tmp_path / "out"), 2, 0]]
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_in_itself(tmp_path):
    for values, text in (
        ({"net": "x", "grid": True, "latents": True}, "--grid goes with neither"),
        ({"net": "x", "sigma_min": 5, "sigma_max": 2}, "must be 0 < sigma_min <= sigma_max, not 5 and 2"),
        (
            {"net": "x", "sampler": "ddim"},
            "sampler must be one of heun, euler, dpmpp-2m, dpmpp-2m-sde, ancestral, rk4, not 'ddim'",
        ),
    ):
        with pytest.raises(UsageError, match=text):
            SampleRequest(tmp_path, **values)


def test_what_a_request_comes_to(digits_pkl, tmp_path):
    for values, text in (
        ({}, "give --preset NAME or --net PATH"),
        ({"net": "nowhere.pkl"}, "there is no such file or folder"),
        ({"net": str(digits_pkl), "guidance": 2.0}, "needs a guiding network"),
        ({"net": str(digits_pkl), "gnet": str(digits_pkl)}, "--gnet needs --guidance"),
        ({"net": str(digits_pkl), "interval": (1, 2)}, "--guidance-interval needs --guidance"),
        ({"preset": "edm2-img512-s-guid-dino", "fetching": Fetching(sha256="0" * 64)}, "is for one file"),
    ):
        with pytest.raises(UsageError, match=text):
            resolve(SampleRequest(tmp_path, **values))
    resolved = resolve(SampleRequest(tmp_path, preset="edm2-img512-s-guid-dino", interval=(0.3, 3)))
    assert resolved.net.stem == "edm2-img512-s-2147483-0.085"
    assert resolved.guide.stem == "edm2-img512-xs-uncond-2147483-0.085"
    assert (resolved.settings.guidance, resolved.settings.interval) == (1.9, (0.3, 3))
    assert resolve(SampleRequest(tmp_path, preset="edm2-img512-s-guid-dino", guidance=1)).guide is None
