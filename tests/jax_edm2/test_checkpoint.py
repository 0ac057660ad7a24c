"""Saving and loading: both formats, dtypes, shardings, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import jax_edm2
from jax_edm2 import CheckpointError
from jax_edm2.converter.convert import convert
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.record import Record, RecordError

SUFFIX = {"safetensors": ".safetensors", "orbax": ""}


def leaves(variables):
    return flatten_dict(variables, sep="/")


@pytest.fixture(params=["safetensors", "orbax"])
def stored(request, digits_pkl, tmp_path):
    path = tmp_path / f"digits{SUFFIX[request.param]}"
    with read_snapshot(digits_pkl) as snapshot:
        convert(snapshot, path, format=request.param)
    return path


def test_values_are_those_of_the_snapshot_whatever_the_format(stored, digits, digits_pkl):
    net, variables = jax_edm2.load(stored)
    assert net == digits[0]
    for path, value in leaves(variables).items():
        assert isinstance(value, jax.Array)
        assert value.dtype == jnp.float16
        np.testing.assert_array_equal(value, leaves(digits[1])[path])
    record = jax_edm2.read_record(stored)
    assert record == jax_edm2.read_record(stored)
    assert record.config == net.config
    assert record.source.name == digits_pkl.name
    assert record.digest.startswith("sha256:")


def test_formats_have_the_same_record(digits_pkl, digits_checkpoint, tmp_path):
    with read_snapshot(digits_pkl) as snapshot:
        assert convert(snapshot, tmp_path / "digits", format="orbax") == jax_edm2.read_record(digits_checkpoint)


def test_orbax_opens_our_safetensors(digits_checkpoint, digits):
    """By its own layout for them, of a name for each tensor."""
    try:
        import orbax.checkpoint.v1 as ocp
    except ImportError:  # where it is, up to orbax 0.12
        import orbax.checkpoint.experimental.v1 as ocp

    with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        found = ocp.load(digits_checkpoint)
    expected = leaves(digits[1])
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], value)


def test_dtype_and_compute_dtype(stored):
    net, variables = jax_edm2.load(stored, dtype=jnp.float32, compute_dtype=jnp.bfloat16)
    assert net.dtype == jnp.bfloat16
    assert {value.dtype for value in leaves(variables).values()} == {jnp.dtype(jnp.float32)}


def test_sharding_places_every_variable(stored):
    devices = jax.devices()
    assert len(devices) == 2
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    _, variables = jax_edm2.load(stored, sharding=replicated)
    assert all(value.sharding == replicated for value in leaves(variables).values())
    _, variables = jax_edm2.load(stored, sharding=devices[1])
    assert all(value.devices() == {devices[1]} for value in leaves(variables).values())


def test_a_batch_sharded_over_a_default_mesh(digits_checkpoint):
    mesh = jax.make_mesh((2,), ("data",))  # explicit axes, where newer JAX has them
    data, everywhere = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["data"], []))
    net, variables = jax_edm2.load(digits_checkpoint, sharding=everywhere)
    x = jax.device_put(jax.random.normal(jax.random.key(0), (4, 1, 8, 8)), data)
    sigma = jax.device_put(jnp.array([0.1, 1, 2, 3]), data)
    sharded = jax.jit(net.apply)(variables, x, sigma)
    alone = jax.jit(net.apply)(jax_edm2.load(digits_checkpoint)[1], np.asarray(x), np.asarray(sigma))
    np.testing.assert_allclose(sharded, alone, rtol=0, atol=7e-7)  # measured: 2.4e-7


@pytest.mark.parametrize("name", ["again.safetensors", "again"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.bfloat16])
def test_save_and_load_are_inverse(digits, digits_checkpoint, tmp_path, name, dtype):
    net, variables = digits
    variables = jax.tree.map(lambda value: (1.5 * value).astype(dtype), variables)
    record = jax_edm2.read_record(digits_checkpoint)
    written = jax_edm2.save(tmp_path / name, net, variables, record=record)
    changed = record.of_changed_weights()
    assert written == dataclasses.replace(changed, dtype=jnp.dtype(dtype).name, digest=written.digest)
    assert written.digest != record.digest
    again, loaded = jax_edm2.load(tmp_path / name)
    assert again == net
    for path, value in leaves(loaded).items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, leaves(variables)[path])
    assert jax_edm2.read_record(tmp_path / name) == written


def test_the_same_tensors_give_the_same_bytes(digits, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        jax_edm2.save(tmp_path / name, *digits)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    library = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert library.keys() == leaves(digits[1]).keys()


@pytest.mark.parametrize("name", ["here.safetensors", "here"])
def test_saving_replaces_only_when_told(digits, tmp_path, name):
    path = tmp_path / name
    jax_edm2.save(path, *digits)
    with pytest.raises(FileExistsError):
        jax_edm2.save(path, *digits)
    ones = jax.tree.map(jnp.ones_like, digits[1])
    jax_edm2.save(path, digits[0], ones, overwrite=True)
    assert float(jax_edm2.load(path)[1]["params"]["unet"]["out_gain"]) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["folder.safetensors", "folder"])
def test_a_folder_of_something_else_is_never_replaced(digits, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").touch()
    with pytest.raises(CheckpointError, match="is a folder and would be lost"):
        jax_edm2.save(tmp_path / name, *digits, overwrite=True)
    assert (tmp_path / name / "precious").exists()


@pytest.mark.parametrize("name", ["broken.safetensors", "broken"])
def test_nothing_is_left_when_writing_fails(digits, tmp_path, name, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    for module in ("safetensors_checkpoint", "orbax_checkpoint"):
        monkeypatch.setattr(f"jax_edm2.{module}.tensors_digest", fail)
    with pytest.raises(OSError, match="no space"):
        jax_edm2.save(tmp_path / name, *digits)
    assert list(tmp_path.iterdir()) == []


def test_variables_of_another_network_are_not_saved(digits, tmp_path):
    net, variables = digits
    params = dict(variables["params"])
    unet = dict(params["unet"])
    del unet["out_gain"]
    unet["out_conv"] = {"mpconv_weight": jnp.zeros((1, 1, 3, 3))}
    unet["extra"] = jnp.zeros(3)
    with pytest.raises(CheckpointError) as error:
        jax_edm2.save(tmp_path / "x.safetensors", net, {**variables, "params": {**params, "unet": unet}})
    assert str(error.value) == (
        f"{tmp_path / 'x.safetensors'}: these are not the variables of the network: "
        "- params/unet/out_gain [] is missing; + params/unet/extra [3] is not part of it; "
        "! params/unet/out_conv/mpconv_weight is [1, 1, 3, 3], should be [1, 32, 3, 3]"
    )
    integers = jax.tree.map(lambda value: value.astype(jnp.int32), variables)
    with pytest.raises(CheckpointError, match="is int32; storable are"):
        jax_edm2.save(tmp_path / "x.safetensors", net, integers)


def test_another_kind_of_network_is_not_saved_as_a_denoiser(digits, tmp_path):
    flow_map = jax_edm2.PrecondUNet(8, 1, 10, unet_kwargs={"use_fourier": True})
    with pytest.raises(CheckpointError, match="only a Precond can be saved, not a PrecondUNet"):
        jax_edm2.save(tmp_path / "x.safetensors", flow_map, digits[1])


def test_a_link_is_never_replaced(digits, tmp_path):
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "target")
    with pytest.raises(CheckpointError, match="is a link or a device"):
        jax_edm2.save(tmp_path / "link.safetensors", *digits, overwrite=True)
    assert (tmp_path / "link.safetensors").is_symlink()


def test_what_cannot_be_loaded(digits_checkpoint, tmp_path):
    tensors = safetensors.numpy.load_file(digits_checkpoint)
    with safetensors.safe_open(digits_checkpoint, "numpy") as file:
        text = file.metadata()["edm2"]

    def rejects(name, message):
        with pytest.raises(CheckpointError) as error:
            jax_edm2.load(tmp_path / name)
        assert message in str(error.value)
        assert str(tmp_path / name) in str(error.value)

    rejects("absent.safetensors", "there is no such file or folder")
    (tmp_path / "empty.safetensors").touch()
    rejects("empty.safetensors", "is no safetensors file")
    shutil.copy(digits_checkpoint, tmp_path / "cut.safetensors")
    with open(tmp_path / "cut.safetensors", "r+b") as file:
        file.truncate(100_000)
    rejects("cut.safetensors", "is no safetensors file")
    safetensors.numpy.save_file(tensors, tmp_path / "bare.safetensors")
    rejects("bare.safetensors", "it has no 'edm2' metadata")
    newer = json.dumps({**json.loads(text), "format": 99})
    safetensors.numpy.save_file(tensors, tmp_path / "newer.safetensors", {"edm2": newer})
    rejects("newer.safetensors", "it has format 99; this version reads format 1")
    whole = {**tensors, "params/unet/out_gain": np.array(1)}
    safetensors.numpy.save_file(whole, tmp_path / "whole.safetensors", {"edm2": text})
    rejects("whole.safetensors", "params/unet/out_gain is I64; weights are F16, F32, BF16, F64")
    del tensors["params/unet/out_gain"]
    safetensors.numpy.save_file(tensors, tmp_path / "less.safetensors", {"edm2": text})
    rejects("less.safetensors", "- params/unet/out_gain [] is missing")
    (tmp_path / "folder").mkdir()
    rejects("folder", "is no orbax checkpoint of this project")


def test_record_survives_json(digits_checkpoint):
    record = jax_edm2.read_record(digits_checkpoint)
    assert Record.from_json(record.to_json()) == record
    assert record.to_json() == json.dumps(json.loads(record.to_json()), sort_keys=True)
    for text in ("", "null", "[]", "{}", '{"format": 1}', '{"format": 1, "config": {}}'):
        with pytest.raises(RecordError):
            Record.from_json(text)


def test_public_names():
    assert set(jax_edm2.__all__) <= set(dir(jax_edm2))
    for name in jax_edm2.__all__:
        assert getattr(jax_edm2, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jax_edm2.nothing
