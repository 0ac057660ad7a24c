"""What was altered is not loaded: digests of the tensors and of the record, and mutants of every file that is read."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_edm2
from jax_edm2 import CheckpointError, Record
from jax_edm2.config import EDM2Config
from jax_edm2.record import CHECK, Encoder, Loss, RecordError, Sampler, Source
from tests.corpora.hostile_checkpoints import built, parts, with_record
from tests.support.networks import configs
from tests.surveys.fuzz_checkpoints import fuzz


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("records", 300),
        ("headers", 300),
        ("VAE configurations", 300),
        ("bits in safetensors", 300),
        ("bits in orbax", 30),
    ],
)
def test_mutants(kind, count):
    outcomes, problems = fuzz(kind, count, seed=1)
    assert problems == []
    # Half of orbax's bytes are in files that nobody reads: 134 of 300 flips were refused, and of 30 a few less or more.
    assert outcomes["refused"] > count / (10 if kind == "bits in orbax" else 3)
    assert outcomes.total() == count


@pytest.mark.parametrize("name", ["digits.safetensors", "digits"])
def test_altered_tensors(digits, digits_checkpoint, tmp_path, name):
    """One value is another: the digest says so, in whatever dtype and on whatever devices it is loaded."""
    net, variables = digits
    record = jax_edm2.save(tmp_path / name, net, variables)
    altered = jax.tree.map(lambda leaf: leaf, variables)
    altered["params"]["unet"]["out_gain"] = altered["params"]["unet"]["out_gain"] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_edm2.tensors.tensors_digest", lambda _: record.digest)
        patch.setattr("jax_edm2.orbax_checkpoint.tensors_digest", lambda _: record.digest)
        jax_edm2.save(tmp_path / name, net, altered, overwrite=True)
    assert jax_edm2.read_record(tmp_path / name) == record
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for options in ({}, {"dtype": "float32"}, {"sharding": replicated}, {"sharding": jax.devices()[1]}):
        with pytest.raises(
            CheckpointError, match=r"its tensors were altered: their digest is sha256:\w{16}\.\.\., and "
        ):
            jax_edm2.load(tmp_path / name, **options)
    _, loaded = jax_edm2.load(tmp_path / name, check=False)
    assert loaded["params"]["unet"]["out_gain"] == altered["params"]["unet"]["out_gain"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["x.safetensors", "x"])
def test_every_dtype_is_checked(digits, tmp_path, dtype, name):
    with jax.enable_x64(dtype == "float64"):
        net, variables = digits
        jax_edm2.save(tmp_path / name, net, jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), variables))
        _, loaded = jax_edm2.load(tmp_path / name)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded)} == {dtype}


def test_no_digest_nothing_to_hold_it_to(tmp_path):
    for digest in ("", "sha256:0", "md5:" + "0" * 64):
        fields = parts()[1]
        del fields[CHECK]
        (tmp_path / "x.safetensors").write_bytes(with_record(json.dumps({**fields, "digest": digest})))
        with pytest.raises(CheckpointError, match="its record has no digest of its tensors"):
            jax_edm2.load(tmp_path / "x.safetensors")
        jax_edm2.load(tmp_path / "x.safetensors", check=False)


def test_tensors_may_be_listed_in_another_order(tmp_path):
    """The order of names in a header is free; values are found by their offsets."""
    header, _, data = parts()
    (tmp_path / "x.safetensors").write_bytes(built(dict(reversed(header.items())), data))
    jax_edm2.load(tmp_path / "x.safetensors")


def test_a_file_that_becomes_shorter(digits_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(digits_checkpoint.read_bytes())
    monkeypatch.setattr("jax_edm2.checkpoint.check_tree", lambda *_: os.truncate(path, 100_000))
    for check in (True, False):
        path.write_bytes(digits_checkpoint.read_bytes())
        with pytest.raises(CheckpointError, match=r"breaks off in .*: it became shorter while it was read"):
            jax_edm2.load(path, check=check)


NUMBERS = st.integers(-(10**9), 10**9) | st.floats()
TEXTS = st.text(st.characters(), max_size=300) | st.just("x" * 5000)


def some(part, /, **values):
    return st.builds(part, **values)


RECORDS = {
    "dtype": st.sampled_from(["", "float16", "float16+float32", "int8"]) | TEXTS,
    "digest": st.sampled_from(["", "sha256:" + "0" * 64]) | TEXTS,
    "not_finite": st.none() | NUMBERS,
    "source": st.none()
    | some(Source, name=TEXTS, sha256=st.just("0" * 64) | TEXTS, kimg=st.none() | NUMBERS, ema_std=st.none() | NUMBERS),
    "encoder": st.none()
    | some(
        Encoder,
        kind=TEXTS,
        scale=st.none() | st.lists(NUMBERS, max_size=9).map(tuple) | st.just((1.5,) * 2000),
        bias=st.none() | st.lists(NUMBERS, max_size=9),
        vae=st.none() | TEXTS,
    ),
    "loss": st.none() | some(Loss, P_mean=NUMBERS, P_std=NUMBERS, sigma_data=NUMBERS),
    "sampler": some(Sampler, num_steps=NUMBERS, guidance=NUMBERS, guide=st.none() | TEXTS) | st.none(),
    "license": st.none() | TEXTS,
}


@settings(max_examples=400)
@given(kwargs=configs(), fields=st.fixed_dictionaries({}, optional=RECORDS))
def test_a_record_that_can_be_made_can_be_read(kwargs, fields):
    """Each field as it is and, of those that do not go together, one at a time."""
    config = EDM2Config(**kwargs)
    sound = {}
    for name, value in fields.items():
        problem = None
        try:
            Record(config, **{name: value})
            sound[name] = value
        except RecordError as error:
            problem = str(error)
        assert problem is None or (name in problem and problem.isprintable() and len(problem) < 500)
    record = Record(config, **sound)
    assert Record.from_json(record.to_json()) == record


@settings(max_examples=25)
@given(fields=st.fixed_dictionaries({}, optional={name: RECORDS[name] for name in ("source", "license", "encoder")}))
def test_a_record_that_can_be_made_comes_back_from_a_checkpoint(fields, tmp_path_factory, digits):
    net, variables = digits
    try:
        record = Record(net.config, **fields)
    except RecordError:
        return
    path = tmp_path_factory.mktemp("record") / "x.safetensors"
    written = jax_edm2.save(path, net, variables, record=record)
    assert jax_edm2.read_record(path) == written
    assert dataclasses.replace(written, dtype="", digest="", not_finite=None) == record


def test_numbers_of_a_configuration_that_json_cannot_hold():
    with pytest.raises(RecordError, match="could not be read again: it holds a number of 201 digits"):
        Record(EDM2Config(8, 1, 0, clip_act=10**200))
