"""Checkpoints go back to PyTorch: what is written is what was read, to torch's own unpickling and to the byte."""

import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_edm2
from jax_edm2.converter.convert import ConvertError, convert
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.opening import open_weights
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.to_snapshot import source_text
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from jax_edm2.torch_ref.training import EDM2Loss
from tests.converter.test_lossless import BITS, random_bits
from tests.support import plain
from tests.support.command_line import Tool
from tests.support.networks import configs, inputs

CONVERT = Tool("edm2-convert", [])


def converted(source, target, **arguments):
    with open_weights(source) as weights:
        return convert(weights, target, **arguments)


def bits(net):
    return {name: tensor.view(BITS[tensor.dtype]) for name, tensor in net.state_dict().items()}


@settings(max_examples=40)
@given(
    kwargs=configs(),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(BITS)),
    channels_last=st.booleans(),
    vae=st.booleans(),
    through=st.sampled_from(["safetensors", "orbax"]),
)
def test_there_and_back(tmp_path_factory, kwargs, seed, dtype, channels_last, vae, through):
    folder = tmp_path_factory.mktemp("back")
    original, checkpoint = folder / "net.pkl", folder / f"net.{through}"
    net = Precond(**kwargs).to(dtype)
    random_bits(net, seed)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    encoder = StabilityVAEEncoder() if vae else None
    write_snapshot(original, net, encoder=encoder, loss_fn=EDM2Loss(-0.8, 1.6, 0.3), dtype=dtype)
    there = converted(original, checkpoint, format=through)
    back = converted(checkpoint, folder / "back.pkl", format="pkl")
    assert back.digest == there.digest

    found, expected = (plain.load(folder / name) for name in ("back.pkl", "net.pkl"))
    assert list(bits(found["ema"])) == list(bits(expected["ema"]))
    for name, value in bits(expected["ema"]).items():
        assert torch.equal(bits(found["ema"])[name], value), name
    assert type(found["encoder"]).__name__ == type(expected["encoder"]).__name__
    for name, value in vars(expected["encoder"]).items():
        np.testing.assert_array_equal(vars(found["encoder"])[name], value)
    assert vars(found["loss_fn"]).items() >= {"P_mean": -0.8, "P_std": 1.6, "sigma_data": 0.3}.items()
    assert found["ema"].training is False
    with read_snapshot(original) as old, read_snapshot(folder / "back.pkl") as new:
        assert (new.config, new.encoder, new.loss) == (old.config, old.encoder, old.loss)
        assert new.source == source_text("network")
        converted(checkpoint, folder / "like.pkl", format="pkl", like=old)
    assert (folder / "like.pkl").read_bytes() == original.read_bytes()


def test_it_computes_the_same(digits_pkl, tmp_path):
    converted(digits_pkl, tmp_path / "net.safetensors")
    converted(tmp_path / "net.safetensors", tmp_path / "back.pkl", format="pkl")
    nets = [plain.load(path)["ema"].float() for path in (digits_pkl, tmp_path / "back.pkl")]
    x, sigma, labels = inputs(plain.load(digits_pkl)["ema"]._init_kwargs, 3, 0)
    for one, other in zip(
        *(net(*map(torch.from_numpy, (x, sigma, labels)), return_logvar=True) for net in nets), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["keep", "float32", "bfloat16"])
def test_between_the_formats_of_checkpoints(digits_pkl, tmp_path, dtype):
    converted(digits_pkl, tmp_path / "a.safetensors")
    direct = converted(digits_pkl, tmp_path / "direct.safetensors", dtype=dtype)
    assert converted(tmp_path / "a.safetensors", tmp_path / "b", format="orbax", dtype=dtype) == direct
    assert converted(tmp_path / "b", tmp_path / "c.safetensors") == direct
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


def test_what_fine_tuning_made_goes_into_the_original(digits_pkl, tmp_path):
    model = jax_edm2.from_pretrained(digits_pkl)
    variables = {**model.variables, "params": {**model.variables["params"]}}
    variables["params"]["unet"] = {**variables["params"]["unet"], "out_gain": np.float32(0.75)}
    model.replace(variables=variables).save(tmp_path / "tuned.safetensors")
    with read_snapshot(digits_pkl) as original:
        converted(tmp_path / "tuned.safetensors", tmp_path / "tuned.pkl", format="pkl", like=original)
        with read_snapshot(tmp_path / "tuned.pkl") as tuned:
            differing = [name for name in tuned.tensors if tuned.read(name).tobytes() != original.read(name).tobytes()]
            assert (differing, tuned.source) == (["unet.out_gain"], original.source)
            assert tuned.read("unet.out_gain") == np.float16(0.75)


def test_what_does_not_go(digits_pkl, tmp_path):
    converted(digits_pkl, tmp_path / "net.safetensors")
    write_snapshot(tmp_path / "other.pkl", Precond(8, 1, 0, model_channels=4, attn_resolutions=[]))
    with (
        read_snapshot(tmp_path / "other.pkl") as other,
        pytest.raises(ConverterError, match="is of another network than"),
    ):
        converted(tmp_path / "net.safetensors", tmp_path / "x.pkl", format="pkl", like=other)
    with pytest.raises(ConvertError, match="is the file that is read"):
        converted(digits_pkl, digits_pkl, format="pkl", overwrite=True)
    data = bytearray((tmp_path / "net.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(data)
    for form in ("pkl", "orbax", "safetensors"):
        with pytest.raises(jax_edm2.CheckpointError, match="its tensors were altered"):
            converted(tmp_path / "altered.safetensors", tmp_path / "x", format=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["altered.safetensors", "net.safetensors", "other.pkl"]


def test_the_command(digits_pkl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CONVERT.run(digits_pkl).returncode == 0
    done = CONVERT.run("digits.safetensors", "-o", "back.pkl")
    assert (done.returncode, done.stderr) == (0, "")
    assert CONVERT.run("digits.safetensors", "--like", digits_pkl, "-o", "like.pkl").returncode == 0
    assert subprocess.run(["cmp", digits_pkl, "like.pkl"]).returncode == 0
    assert CONVERT.run("digits.safetensors", "-o", "digits.orbax").returncode == 0
    CONVERT.fails("digits.safetensors", text="digits.safetensors is the file that is read: choose another --output")
    CONVERT.fails(
        "digits.safetensors",
        "--like",
        digits_pkl,
        "--dtype",
        "float32",
        text="--like is for --format pkl, in the dtype",
    )
    CONVERT.fails("digits.safetensors", "--like", "none.pkl", "-o", "x.pkl", text="none.pkl: there is no such file")
    CONVERT.fails(digits_pkl, "--config-from", digits_pkl, "-o", "x", text="--config-from is for training states")
