"""What edm2-convert does, as one call: it prints nothing, and tells its caller what there is to tell."""

from pathlib import Path

import pytest
import torch

import jax_edm2
from jax_edm2.converter import presets
from jax_edm2.converter.conversion import ConversionRequest, fetch_and_convert
from jax_edm2.converter.errors import UsageError
from jax_edm2.converter.sources import Fetching
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.jax_edm2.test_parity import CONFIG
from tests.support.listener import Listener
from tests.support.networks import network
from tests.support.server import Server


def test_a_guided_preset(digits_pkl, tmp_path, monkeypatch, capfd):
    listener = Listener()
    with Server(digits_pkl.read_bytes()) as server:
        monkeypatch.setattr(presets, "ROOT", server.url("posthoc"))
        request = ConversionRequest(
            preset="edm2-img512-s-guid-dino", output=tmp_path, fetching=Fetching(cache_dir=tmp_path / "cache")
        )
        conversion = fetch_and_convert(request, warn=listener.warnings.append, progress=listener.show)
    assert capfd.readouterr() == ("", "")
    assert listener.warnings == []
    names = ["edm2-img512-xs-uncond-2147483-0.085", "edm2-img512-s-2147483-0.085"]
    assert [what[33:] for what, _, _ in listener.progress] == [f"{name}.pkl" for name in names]
    assert all(total == done == conversion.network.bytes for _, total, done in listener.progress)
    assert [conversion.guide.output, conversion.network.output] == [tmp_path / f"{n}.safetensors" for n in names]
    assert conversion.network.written
    sampler = conversion.network.metadata["sampler"]
    assert (sampler["guidance"], sampler["guide"]) == (1.9, f"{names[0]}.safetensors")
    assert jax_edm2.load(conversion.network.output)[0].config.img_resolution == 8


def test_what_is_told(tmp_path, capfd):
    net = network(CONFIG)
    net.unet.out_gain.fill_(torch.nan)
    write_snapshot(tmp_path / "x.pkl", net)
    listener = Listener()
    request = ConversionRequest(str(tmp_path / "x.pkl"), output=tmp_path / "x.safetensors")
    fetch_and_convert(request, warn=listener.warnings.append)
    assert capfd.readouterr() == ("", "")
    (line,) = listener.warnings
    assert line.startswith("x.pkl: 1 values are NaN or infinite, and are kept so: in unet.out_gain (1)")
    with pytest.raises(FileExistsError):
        fetch_and_convert(request)


def test_a_request_that_contradicts_itself():
    for request, text in (
        (ConversionRequest(), "give a SOURCE"),
        (ConversionRequest("x.pkl", "edm2-img512-s"), "x.pkl and --preset edm2-img512-s are two snapshots"),
        (ConversionRequest("edm2-img512-s"), "did you mean --preset"),
        (ConversionRequest(preset="edm2-img512-s-guid-dino", fetching=Fetching(sha256="0" * 64)), "is for one file"),
    ):
        with pytest.raises(UsageError, match=text):
            fetch_and_convert(request)


def test_a_dry_run_of_nothing_but_a_path(digits_pkl):
    conversion = fetch_and_convert(ConversionRequest(str(digits_pkl), dry_run=True))
    assert (conversion.network.output, conversion.network.written, conversion.guide) == (None, False, None)
    assert len(conversion.network.tensors) == 63
    assert not Path("digits.safetensors").exists()
