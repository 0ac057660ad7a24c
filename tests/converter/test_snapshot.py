"""Reading snapshots: what a good one says, and one clear line for each kind of bad one."""

import inspect
import os
import pickle

import numpy as np
import pytest
import torch

from jax_edm2.converter import snapshot as snapshot_module
from jax_edm2.converter import weights
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.snapshot import SnapshotError, read_snapshot
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import EasyDict, SnapshotPickler, container_modules, write_snapshot
from jax_edm2.torch_ref.training import EDM2Loss
from tests.jax_edm2.test_parity import CONFIG
from tests.support import plain
from tests.support.networks import network


@pytest.fixture
def net():
    return network(CONFIG)


def dump(path, value, protocol=4):
    """Pickle anything in the container's dialect."""
    with open(path, "wb") as file, container_modules():
        SnapshotPickler(file, protocol=protocol).dump(value)
    return path


def message(path):
    with pytest.raises(SnapshotError) as error:
        read_snapshot(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    return text


def test_everything_of_a_snapshot(net, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 100)
    path = tmp_path / "edm2-img64-s-1073741-0.075.pkl"
    write_snapshot(path, net, encoder=StabilityVAEEncoder(), loss_fn=EDM2Loss(-0.8, 1.6))
    with read_snapshot(path) as snapshot:
        assert snapshot.init_kwargs == CONFIG
        assert snapshot.config.channel_mult == (1, 2)
        assert snapshot.encoder.vae == "stabilityai/sd-vae-ft-mse"
        assert (snapshot.loss.P_mean, snapshot.loss.P_std, snapshot.loss.sigma_data) == (-0.8, 1.6, 0.5)
        assert snapshot.source == inspect.getsource(inspect.getmodule(Precond))
        assert list(snapshot.tensors) == list(net.state_dict())
        for name, tensor in net.half().state_dict().items():
            np.testing.assert_array_equal(snapshot.read(name), tensor.numpy())
            assert b"".join(map(bytes, snapshot.chunks(name))) == tensor.numpy().tobytes()


def test_our_files_open_the_plain_way(net, tmp_path):
    """With nothing but the source that they embed, as in NVlabs' loader."""
    write_snapshot(tmp_path / "net.pkl", net, dtype=torch.float32)
    loaded = plain.load(tmp_path / "net.pkl")
    assert list(loaded) == ["encoder", "dataset_kwargs", "loss_fn", "ema"]
    assert not loaded["ema"].training
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        torch.testing.assert_close(loaded["ema"](x, sigma), net(x, sigma), rtol=0, atol=0)
    assert loaded["encoder"].decode(torch.zeros(1)).item() == 128
    assert loaded["loss_fn"](loaded["ema"], x, torch.zeros(2, 5)).shape == x.shape


def test_positional_constructor_arguments(tmp_path):
    kwargs = dict(CONFIG)
    net = Precond(kwargs.pop("img_resolution"), kwargs.pop("img_channels"), kwargs.pop("label_dim"), **kwargs)
    write_snapshot(tmp_path / "net.pkl", net)
    with read_snapshot(tmp_path / "net.pkl") as snapshot:
        assert snapshot.config == snapshot_module.EDM2Config(**CONFIG)


def test_files_that_are_no_snapshots(tmp_path):
    path = tmp_path / "x.pkl"
    assert message(path).endswith("there is no such file")
    assert "is a directory" in message(tmp_path)
    path.touch()
    assert message(path).endswith("is empty")
    path.write_bytes(b"<!DOCTYPE html><html>")
    assert "is no pickle, but a web page" in message(path)
    path.write_bytes(b"hello world, hello")
    assert "is no pickle: it begins with b'hello" in message(path)
    torch.save({"a": torch.zeros(3)}, path)
    assert "is a zip file, not a snapshot" in message(path)
    path.write_bytes((20).to_bytes(8, "little") + b'{"__metadata__":{}}' + b" " * 9)
    assert "is a safetensors file, converted already" in message(path)
    for value, text in [
        ([1, 2], "holds no dictionary"),
        ({"a": 1}, "it has no entry 'ema', only 'a'"),
        ({"ema": 3}, "its entry 'ema' is no network"),
        ({"G_ema": 1, "D": 2}, "is a StyleGAN snapshot"),
    ]:
        assert text in message(dump(path, value))
    path.write_bytes(pickle.dumps({"ema": os.getcwd}))
    assert "global 'posix.getcwd' has no place in a snapshot" in message(path)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in message(path)


@pytest.mark.parametrize(
    ("class_name", "text"),
    [
        ("EDMPrecond", "is an EDM (2022) snapshot (EDMPrecond), not EDM2"),
        ("VPPrecond", "is an EDM (2022) snapshot"),
        ("Generator", "is a StyleGAN snapshot"),
        ("UNet", "its network is of class 'UNet'"),
    ],
)
def test_other_networks_in_the_same_container(tmp_path, class_name, text):
    cls = type(class_name, (Precond,), {"__module__": Precond.__module__})
    write_snapshot(tmp_path / "x.pkl", cls(**CONFIG))
    assert text in message(tmp_path / "x.pkl")


def test_an_edm_snapshot_is_named_even_where_reading_it_ends_early(tmp_path):
    """EDM's own networks hold numpy scalars, which no EDM2 snapshot does."""
    net = type("EDMPrecond", (Precond,), {"__module__": Precond.__module__})(**CONFIG)
    net.unet.scale = np.float64(3)
    dump(tmp_path / "x.pkl", EasyDict(ema=net))
    assert "is an EDM (2022) snapshot (EDMPrecond), not EDM2" in message(tmp_path / "x.pkl")


def test_all_wrong_parameters_are_listed_at_once(net, tmp_path):
    del net.unet.enc["16x16_block0"]._parameters["emb_gain"]
    net.unet.register_buffer("extra", torch.zeros(2, 3))
    net.unet.out_conv.weight = torch.nn.Parameter(torch.zeros(3, 16, 1, 1))
    write_snapshot(tmp_path / "x.pkl", net)
    assert message(tmp_path / "x.pkl") == (
        f"{tmp_path / 'x.pkl'}: its network is not what its constructor arguments say: "
        "+ unet.extra [2, 3] is not part of it; - unet.enc.16x16_block0.emb_gain [] is missing; "
        "! unet.out_conv.weight is [3, 16, 1, 1], should be [3, 16, 3, 3]"
    )


def test_configurations_that_contradict_the_network(net, tmp_path):
    def rejected(text, **changes):
        net._init_kwargs = {**CONFIG, **changes}
        write_snapshot(tmp_path / "x.pkl", net)
        assert text in message(tmp_path / "x.pkl")

    rejected("unknown arguments 'magic'", magic=1)
    rejected("img_channels must be an integer from 1", img_channels=-1)
    rejected("! unet.emb_label.weight is [32, 5], should be [32, 7]", label_dim=7)
    rejected("! sigma_data is 0.5, should be 1", sigma_data=1)
    net._init_kwargs = CONFIG
    net.unet.enc["16x16_block0"].clip_act = 100
    net.unet.concat_balance = 0.25
    write_snapshot(tmp_path / "x.pkl", net)
    text = message(tmp_path / "x.pkl")
    assert "! unet.enc.16x16_block0.clip_act is 100, should be 256" in text
    assert "! unet.concat_balance is 0.25" in text


def test_unsupported_tensors(net, tmp_path):
    net.unet.out_conv.weight = torch.nn.Parameter(net.unet.out_conv.weight.transpose(2, 3))
    write_snapshot(tmp_path / "x.pkl", net)
    assert "is not contiguous" in message(tmp_path / "x.pkl")
    write_snapshot(tmp_path / "x.pkl", network(CONFIG), protocol=2)
    assert "pickle.dump it again with protocol=4" in message(tmp_path / "x.pkl")


def test_truncation_anywhere_is_one_clear_error(net, tmp_path):
    path = tmp_path / "x.pkl"
    write_snapshot(path, net)
    data = path.read_bytes()
    for length in np.random.default_rng(0).integers(1, len(data), 60):
        path.write_bytes(data[:length])
        text = message(path)
        assert "breaks off" in text or "reach" in text, text
    path.write_bytes(data + b"x")
    assert "1 bytes follow the end of its pickle" in message(path)


def test_a_file_that_shrinks_while_it_is_read(net, tmp_path):
    path = tmp_path / "x.pkl"
    write_snapshot(path, net)
    with read_snapshot(path) as snapshot:
        os.truncate(path, 1000)
        with pytest.raises(ConverterError, match="became shorter while it was read"):
            list(snapshot.chunks("unet.out_conv.weight"))
        with pytest.raises(ConverterError, match="became shorter while it was read"):
            snapshot.read("unet.out_conv.weight")
