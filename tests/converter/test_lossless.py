"""Every tensor of a snapshot arrives bit for bit, for random configurations, dtypes and pickle protocols."""

from collections import OrderedDict

import numpy as np
import pytest
import safetensors
import torch
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_edm2
from jax_edm2.checkpoint import WRITERS
from jax_edm2.converter.convert import convert
from jax_edm2.converter.names import jax_path, torch_name
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support import plain
from tests.support.networks import configs

BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def random_bits(net, seed):
    """Fill the network with arbitrary bit patterns: NaNs with payloads, infinities, subnormals, negative zeros."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        info = torch.iinfo(BITS[tensor.dtype])
        bits = torch.randint(info.min, info.max, tensor.shape, generator=generator, dtype=BITS[tensor.dtype])
        tensor.copy_(bits.view(tensor.dtype))


def with_ordered_dicts(net):
    """As torch up to 2.2 kept a module's tables."""
    for module in net.modules():
        for table in ("_parameters", "_buffers", "_modules"):
            module.__dict__[table] = OrderedDict(module.__dict__[table])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Most tensors here are read in many pieces, as large ones are."""
    monkeypatch.setattr("converter.weights.CHUNK", 96)


@settings(max_examples=60)
@given(
    kwargs=configs(),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(list(BITS)),
    protocol=st.sampled_from([3, 4, 5]),
    ordered=st.booleans(),
    channels_last=st.booleans(),
    vae=st.booleans(),
)
def test_every_tensor_is_equal_bit_for_bit(
    tmp_path_factory, kwargs, seed, dtype, protocol, ordered, channels_last, vae
):
    folder = tmp_path_factory.mktemp("lossless")
    net = Precond(**kwargs).to(dtype)
    random_bits(net, seed)
    if ordered:
        with_ordered_dicts(net)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    encoder = StabilityVAEEncoder() if vae else None
    write_snapshot(folder / "net.pkl", net, encoder=encoder, dtype=dtype, protocol=protocol)
    with read_snapshot(folder / "net.pkl") as snapshot:
        record = convert(snapshot, folder / "net.safetensors")
        assert snapshot.init_kwargs == kwargs

    stored = plain.load(folder / "net.pkl")["ema"].state_dict()  # independent of our reader
    with safetensors.safe_open(folder / "net.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(map(jax_path, stored))
        for name, tensor in stored.items():
            written = file.get_tensor(jax_path(name))
            assert written.dtype == tensor.dtype == dtype
            assert written.shape == tensor.shape
            assert torch.equal(written.view(BITS[dtype]), tensor.view(BITS[dtype]))
            assert torch.equal(written.view(BITS[dtype]), net.state_dict()[name].view(BITS[dtype]))
    assert record.encoder.kind == ("StabilityVAEEncoder" if vae else "StandardRGBEncoder")
    if vae:
        np.testing.assert_array_equal(np.float32(record.encoder.scale), encoder.scale)
        np.testing.assert_array_equal(np.float32(record.encoder.bias), encoder.bias)


@pytest.mark.parametrize("dtype", ["keep", "float32", "float16", "bfloat16"])
def test_formats_hold_the_same_whatever_the_dtype(digits_pkl, tmp_path, dtype):
    with read_snapshot(digits_pkl) as snapshot:
        records = [convert(snapshot, tmp_path / format, format=format, dtype=dtype) for format in WRITERS]
    assert records[0] == records[1]
    plain_values = plain.load(digits_pkl)["ema"].state_dict()
    for format in WRITERS:
        _, variables = jax_edm2.load(tmp_path / format)
        for path, value in flatten_dict(variables, sep="/").items():
            expected = plain_values[torch_name(path)]
            expected = expected if dtype == "keep" else expected.to(getattr(torch, dtype))
            assert str(value.dtype) == str(expected.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(np.asarray(value, np.float32), expected.float().numpy())
