"""Training states of NVlabs': every tensor arrives, goes back, and training goes on as if nothing had happened."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_edm2
from jax_edm2.config import EDM2Config, expected_tree
from jax_edm2.converter.convert import convert
from jax_edm2.converter.errors import ConverterError, SnapshotError
from jax_edm2.converter.inference import seen
from jax_edm2.converter.names import jax_path, torch_name
from jax_edm2.converter.opening import known, open_network, open_weights
from jax_edm2.converter.to_training_state import state_names
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support.command_line import Tool
from tests.support.networks import configs
from tests.support.states import TINY, Trained, assert_same, flat, load, save

CONVERT = Tool("edm2-convert", [])
NAME = "training-state-0000003.pt"


@pytest.fixture(scope="module")
def state_pt(tmp_path_factory):
    """A training state beside what says how its network was constructed."""
    folder = tmp_path_factory.mktemp("run")
    network = {"class_name": "training.networks_edm2.Precond", **TINY}
    network = {
        key: value for key, value in network.items() if key not in ("img_resolution", "img_channels", "label_dim")
    }
    options = {"network_kwargs": network, "encoder_kwargs": {"class_name": "training.encoders.StandardRGBEncoder"}}
    (folder / "training_options.json").write_text(json.dumps(options))
    return Trained().steps(3).save(folder / NAME)


def test_everything_is_read(state_pt):
    content = load(state_pt)
    names = [name for name in content["net"] if jax_path(name).startswith("params/")]
    with open_weights(state_pt) as state:
        assert state.config == EDM2Config(**TINY)
        assert (state.encoder.kind, state.loss.P_mean, state.assumed) == ("StandardRGBEncoder", -0.8, ())
        training = state.training
        assert (training.images, training.steps, training.seconds, training.stds) == (3072, 3, 4.5, (0.05, 0.1))
        assert (training.learning_rate, training.betas, training.eps) == (0.01, (0.9, 0.99), 1e-8)
        expected = {f"net/{jax_path(name)}": value for name, value in content["net"].items()}
        for std, average in zip((0.05, 0.1), content["ema"]["emas"], strict=True):
            expected |= {f"ema-{std:.3f}/{jax_path(name)}": value for name, value in average.items()}
        for part, key in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            states = content["optimizer"]["state"]
            expected |= {f"{part}/{jax_path(name)}": states[i][key] for i, name in enumerate(names)}
        assert state.tensors.keys() == expected.keys()
        for name, value in expected.items():
            found = state.read(name)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found.view(np.int32), value.numpy().view(np.int32))


@settings(max_examples=15)
@given(kwargs=configs(), seed=st.integers(0, 2**31), stds=st.sampled_from([(0.05, 0.1), (0.02,), ()]))
def test_there_and_back(tmp_path_factory, kwargs, seed, stds):
    folder = tmp_path_factory.mktemp("state")
    path = Trained(kwargs, seed, stds).steps(2, seed).save(folder / NAME)
    write_snapshot(folder / "net.pkl", Precond(**kwargs))
    with open_weights(path, config_from=str(folder / "net.pkl")) as state:
        record = convert(state, folder / "state.safetensors")
        direct = convert(state, folder / "direct.pt", format="pt")
    with open_weights(folder / "state.safetensors") as state:
        again = convert(state, folder / "back.pt", format="pt")
    assert record.digest == direct.digest == again.digest
    original = load(path)
    for name in ("direct.pt", "back.pt"):
        back = load(folder / name)
        assert list(back["net"]) == list(original["net"]) == state_names(EDM2Config(**kwargs))
        assert "edm2" not in original
        del original["loss_fn"]["_init_kwargs"], back["loss_fn"]["_init_kwargs"], back["edm2"]
        assert_same(back, original)
        original = load(path)


def test_orbax_holds_the_same(state_pt, tmp_path):
    with open_weights(state_pt) as state:
        record = convert(state, tmp_path / "state", format="orbax")
        convert(state, tmp_path / "state.safetensors")
    assert json.loads(record.to_json())["training"]["images"] == 3072
    states = [jax_edm2.load_training_state(tmp_path / name) for name in ("state", "state.safetensors")]
    for one, other in zip(
        *map(jax.tree_util.tree_leaves, ([vars(s)[k] for k in ("variables", "mu", "nu", "averages")] for s in states)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert jax_edm2.save_training_state(tmp_path / "again", states[0]) == record
    with pytest.raises(jax_edm2.CheckpointError, match="is a training state: load_training_state reads it"):
        jax_edm2.load(tmp_path / "state")
    with open_network(tmp_path / "state", "ema-0.100") as weights, open_network(state_pt, "ema-0.100") as direct:
        records = [convert(w, tmp_path / f"{i}.safetensors") for i, w in enumerate((weights, direct))]
    assert records[0].digest == records[1].digest
    assert records[0].source == records[1].source
    assert (records[0].source.kimg, records[0].source.ema_std) == (3, 0.1)


def test_training_goes_on_in_torch_as_if_nothing_had_happened(state_pt, tmp_path):
    with open_weights(state_pt) as state:
        convert(state, tmp_path / "state", format="orbax")
    jax_edm2.save_training_state(tmp_path / "again", jax_edm2.load_training_state(tmp_path / "state"))
    with open_weights(tmp_path / "again") as state:
        convert(state, tmp_path / "back.pt", format="pt")
    without, with_ = (Trained(seed=9).load(path).steps(3, seed=5) for path in (state_pt, tmp_path / "back.pt"))
    assert_same(with_.content(), without.content())


def test_training_goes_on_in_jax(state_pt, tmp_path):
    with open_weights(state_pt) as state:
        convert(state, tmp_path / "state", format="orbax")
    state = jax_edm2.load_training_state(tmp_path / "state")
    training, params = state.record.training, state.variables["params"]
    adam = optax.adam(training.learning_rate, *training.betas, training.eps)
    count = jnp.asarray(training.steps, jnp.int32)
    optimizer = (optax.ScaleByAdamState(count, state.mu, state.nu), *adam.init(params)[1:])
    trained = Trained(seed=9).load(state_pt).steps(1, seed=5)
    gradients = {jax_path(name): np.asarray(p.grad) for name, p in trained.net.named_parameters()}
    grads = jax.tree_util.tree_map_with_path(
        lambda path, _: gradients["params/" + jax.tree_util.keystr(path, simple=True, separator="/")], params
    )
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = adam.update(grads, optimizer, params)
    for path, value in jax.tree_util.tree_leaves_with_path(optax.apply_updates(params, updates)):
        name = torch_name("params/" + jax.tree_util.keystr(path, simple=True, separator="/"))
        expected = trained.net.state_dict()[name].numpy()
        np.testing.assert_allclose(value, expected, rtol=0, atol=5e-7)  # found: 2.4e-7


@settings(max_examples=60)
@given(kwargs=configs())
def test_what_shapes_say(kwargs):
    """The tree is that of the true configuration, once what no shape says is known."""
    config = EDM2Config(**kwargs)
    shapes = {torch_name(path): shape for path, shape in expected_tree(config).items()}
    silent = {key: kwargs[key] for key in ("channels_per_head", "resample_filter") if key in kwargs}
    guessed = EDM2Config(**{**seen(shapes), **silent})
    assert expected_tree(guessed) == expected_tree(config)
    for name in ("img_resolution", "img_channels", "label_dim", "widths", "noise_channels", "emb_channels"):
        assert getattr(guessed, name) == getattr(config, name)


def test_where_the_configuration_comes_from(state_pt, tmp_path):
    alone = tmp_path / NAME
    shutil.copy(state_pt, alone)
    with pytest.raises(SnapshotError, match=r"that their shapes suggest: .*; --config-from names"):
        open_weights(alone)  # its heads have 8 channels
    write_snapshot(tmp_path / "other.pkl", Precond(**TINY))
    with open_weights(alone, config_from=str(tmp_path / "other.pkl")) as state:
        assert (state.config, state.encoder.kind, state.assumed) == (EDM2Config(**TINY), "StandardRGBEncoder", ())
    assert known("edm2-img512-xs").config.model_channels == 128
    with pytest.raises(ConverterError, match="--config-from nothing: there is no such file, and there is no preset"):
        known("nothing")
    with pytest.raises(SnapshotError, match="not those of the configuration of edm2-img512-xs: "):
        open_weights(alone, config_from="edm2-img512-xs")
    wide = {key: value for key, value in TINY.items() if key != "channels_per_head"} | {"model_channels": 64}
    Trained(wide).steps(1).save(alone)
    with open_weights(alone, "ema-0.050") as weights:
        assert weights.config == EDM2Config(**wide)
        record = convert(weights, tmp_path / "net.safetensors")
    assert "channels_per_head=64" in record.assumed
    assert "encoder=StandardRGBEncoder" in record.assumed
    assert jax_edm2.read_record(tmp_path / "net.safetensors") == record


def test_the_command(state_pt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CONVERT.run(state_pt)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("training-state-0000003.orbax: ")
    done = CONVERT.run(state_pt, "--weights", "ema-0.100")
    assert done.stdout.startswith("training-state-0000003-ema-0.100.safetensors: ")
    assert CONVERT.run("training-state-0000003.orbax", "-o", "x.pt").returncode == 0
    with open_weights(tmp_path / "x.pt") as state:  # there is no training_options.json beside it
        assert (state.config, state.assumed) == (EDM2Config(**TINY), ())
    assert_same(flat(load("x.pt")["ema"]), flat(load(state_pt)["ema"]))
    assert "a training state of" in CONVERT.run("check", "x.pt").stdout
    assert "training.images" in CONVERT.run("inspect", state_pt).stdout
    CONVERT.fails(state_pt, "--weights", "ema-0.2", text="has no weights 'ema-0.2'; it has net, ema-0.050, ema-0.100")
    CONVERT.fails(state_pt, "-o", "x.pkl", text="only one network can be written as .pkl")
    CONVERT.fails(state_pt, "-o", "y.orbax", "--dtype", "float16", text="a training state stays in float32")
    CONVERT.fails(
        "training-state-0000003-ema-0.100.safetensors", "--format", "pt", text="only a training state can be written"
    )
    CONVERT.fails("training-state-0000003-ema-0.100.safetensors", "--weights", "net", text="holds one network")


def test_states_that_are_something_else(state_pt, tmp_path):
    content = load(state_pt)

    def fails(text, change=lambda found: None, **changes):
        found = {**load(state_pt), **changes}
        change(found)
        save(found, tmp_path / NAME)
        shutil.copy(state_pt.with_name("training_options.json"), tmp_path)
        with pytest.raises(SnapshotError) as error:
            open_weights(tmp_path / NAME)
        assert text in str(error.value)
        assert "\n" not in str(error.value)

    fails("no training state of EDM2: it has no optimizer", lambda found: found.pop("optimizer"))
    half = {name: value.half() for name, value in content["net"].items()}
    fails("in float16; training states are in float32", net=half)
    fails("its optimizer has weight_decay 0.1", lambda f: f["optimizer"]["param_groups"][0].update(weight_decay=0.1))
    fails("its optimizer has amsgrad True", lambda f: f["optimizer"]["param_groups"][0].update(amsgrad=True))
    fails("had training begun?", lambda f: f["optimizer"].update(state={}))
    fails("has taken more steps with some", lambda f: f["optimizer"]["state"][3].update(step=torch.tensor(9.0)))
    fails("counts its steps in an unknown way", lambda f: f["optimizer"]["state"][0].update(step=torch.tensor(0.5)))
    fails("is not like it", lambda f: f["optimizer"]["state"][1].update(exp_avg=torch.zeros(3)))
    fails("its averages are of no standard deviations", ema={"stds": [2.0], "emas": []})
    fails("it has not one average for each", ema={"stds": [0.1], "emas": []})
    fails("its loss_fn has no P_mean", loss_fn={})
    fails("its state has seen -5 images", lambda f: f["state"].update(cur_nimg=-5))
    fails("unet.out_gain [] is missing", lambda f: f["net"].pop("unet.out_gain"))
