"""Trainings as calls: what they write, how they go on, from which files they begin."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import jax_edm2
from jax_edm2.checkpoint import read_record
from jax_edm2.converter.opening import open_network
from jax_edm2.converter.phema import PhemaRequest, reconstruct
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.train import checkpoints, loop
from jax_edm2.converter.train.loop import plan_of, train
from jax_edm2.converter.train.pictures import draw_losses
from jax_edm2.converter.train.request import TrainError
from jax_edm2.converter.train.tally import BINS, mean_loss, tallied
from tests.support.datasets import small_dataset, write_dataset
from tests.support.states import TINY, Trained
from tests.support.trainings import BATCH, request

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax wants it
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data") / "data.zip")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training without a stop, with all that it writes, and what it showed."""
    outdir, told = tmp_path_factory.mktemp("whole") / "run", []
    more = {"status": 2 * BATCH, "checkpoint": 3 * BATCH, "snapshot": 1000, "pkl": True, "samples": 6}
    report = train(request(data, outdir, STEPS * BATCH, **more), status=told.append, peak=lambda _: 1e9)
    return report, told


def stopped_after(steps):
    """A `stop` that is asked before every step."""
    asked = iter([False] * (steps - 1) + [True] * 9)
    return lambda: next(asked)


def digest_of(outdir, steps=STEPS):
    return read_record(outdir / f"training-state-{steps * BATCH:010d}").digest


def test_what_it_writes(whole):
    report, told = whole
    assert (report.began, report.images, report.finished) == (0, STEPS * BATCH, True)
    assert [each.images for each in told] == [2 * BATCH, 4 * BATCH, 6 * BATCH]
    assert all(np.isfinite(each.loss) and 0 < each.share_of_peak < 1e3 for each in told)
    names = {path.name for path in report.outdir.iterdir()}
    assert names == {
        "training_options.json", "stats.jsonl", "loss-0000000.png", "samples-0000000.png",
        "training-state-0000000024", "training-state-0000000048",
        *(f"network-snapshot-0000000-{std}.{kind}" for std in ("0.050", "0.100") for kind in ("safetensors", "pkl")),
    }  # fmt: skip
    lines = [json.loads(line) for line in (report.outdir / "stats.jsonl").read_text().splitlines()]
    assert [line["Progress/kimg"] for line in lines] == [0.016, 0.032, 0.048]
    fields = {"Loss/loss", "Loss/learning_rate", "Timing/total_sec", "Timing/sec_per_tick", "Timing/sec_per_kimg",
              "Timing/maintenance_sec", "Resources/cpu_mem_gb", "timestamp"}  # fmt: skip
    assert all(fields <= line.keys() for line in lines)
    assert [line["Loss/learning_rate"] for line in lines] == pytest.approx([0.01 / 4, 0.0075, 0.01], rel=1e-5)
    with Image.open(report.outdir / "samples-0000000.png") as sheet:
        assert (sheet.mode, sheet.size) == ("RGB", (152, 102))  # 6 pictures in rows of 3
    options = json.loads((report.outdir / "training_options.json").read_text())
    assert options["network_kwargs"]["channel_mult"] == [1, 2]
    assert (options["batch_size"], options["loss_kwargs"]["P_std"], options["seed"]) == (BATCH, 1.0, 0)


def test_snapshots_are_the_averages(whole):
    report, _ = whole
    state = jax_edm2.load_training_state(report.checkpoint)
    for std, average in state.averages.items():
        path = report.outdir / f"network-snapshot-0000000-{std:.3f}.safetensors"
        net, variables = jax_edm2.load(path)
        assert net.config == state.record.config
        expected = {name: value.astype(np.float16) for name, value in flatten_dict(average).items()}
        assert all(np.array_equal(value, expected[name]) for name, value in flatten_dict(variables).items())
        with read_snapshot(path.with_suffix(".pkl")) as snapshot, open_network(path) as checkpoint:
            assert all(np.array_equal(snapshot.read(name), checkpoint.read(name)) for name in snapshot.tensors)
            assert (snapshot.loss.P_mean, snapshot.encoder.kind) == (-0.4, "StandardRGBEncoder")


@pytest.mark.parametrize("first", [1, 4])
def test_it_goes_on_bit_for_bit(whole, data, tmp_path, first):
    """Stopped once before a checkpoint was due, and once after; the second half is another call."""
    outdir = tmp_path / "run"
    report = train(request(data, outdir, STEPS * BATCH, checkpoint=3 * BATCH), stop=stopped_after(first))
    assert (report.images, report.finished) == ((first + 1) * BATCH, False)  # the step that it was in is the last
    assert report.checkpoint == outdir / f"training-state-{report.images:010d}"
    report = train(request(data, outdir, STEPS * BATCH))
    assert (report.began, report.finished) == ((first + 1) * BATCH, True)
    assert digest_of(outdir) == digest_of(whole[0].outdir)
    again = train(request(data, outdir, STEPS * BATCH))
    assert (again.began, again.images, again.finished) == (STEPS * BATCH, STEPS * BATCH, True)


def test_a_damaged_checkpoint_is_passed_over(whole, data, tmp_path):
    outdir, warnings = tmp_path / "run", []
    shutil.copytree(whole[0].outdir, outdir)
    newest, older = sorted(outdir.glob("training-state-*"), reverse=True)
    damaged = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    report = train(request(data, outdir, STEPS * BATCH), warn=warnings.append)
    assert report.began == 3 * BATCH
    assert digest_of(outdir) == digest_of(whole[0].outdir)  # and in its place is a sound one
    assert len(warnings) == 1
    assert str(newest) in warnings[0]
    for path in (newest, older):
        for file in path.glob("*METADATA"):
            file.write_text("{}")
    with pytest.raises(TrainError, match="no checkpoint in it is sound; remove them to begin anew"):
        train(request(data, outdir, STEPS * BATCH), warn=warnings.append)


def test_a_full_disk_loses_nothing(data, tmp_path, monkeypatch):
    """A checkpoint that cannot be written is told of, and training goes on; at the end it is an error."""
    real, warnings = checkpoints.save_training_state, []

    def full(path, state, **more):
        if f"{2 * BATCH:010d}" in str(path) or f"{4 * BATCH:010d}" in str(path):
            raise OSError(28, "No space left on device", str(path))
        return real(path, state, **more)

    monkeypatch.setattr(checkpoints, "save_training_state", full)
    wanted = request(data, tmp_path / "run", 4 * BATCH, checkpoint=BATCH, keep=2)
    with pytest.raises(TrainError, match=r"training-state-0000000032: was not written: .*No space left"):
        train(wanted, warn=warnings.append)
    assert len(warnings) == 2
    assert sorted(path.name[-3:] for path in wanted.outdir.glob("training-state-*")) == ["008", "024"]
    monkeypatch.undo()
    assert train(dataclasses.replace(wanted, duration=6 * BATCH)).began == 3 * BATCH
    assert sorted(path.name[-3:] for path in wanted.outdir.glob("training-state-*")) == ["040", "048"]  # the newest two


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The last state of a training that no dropout disturbs."""
    outdir = tmp_path_factory.mktemp("plain")
    return jax_edm2.load_training_state(train(request(data, outdir, 4 * BATCH, dropout=0.0)).checkpoint)


@pytest.mark.parametrize("more", [{"fsdp": True, "batch_gpu": 2}, {"remat": True}])
def test_how_it_is_computed_changes_roundings_alone(plain, data, tmp_path, monkeypatch, more):
    least = loop.fully_sharded
    monkeypatch.setattr(loop, "fully_sharded", lambda tree, mesh: least(tree, mesh, 64))  # the network is tiny
    report = train(request(data, tmp_path, 4 * BATCH, dropout=0.0, **more))
    found = flatten_dict(jax_edm2.load_training_state(report.checkpoint).averages[0.1], sep="/")
    for name, value in flatten_dict(plain.averages[0.1], sep="/").items():
        apart, size = np.linalg.norm(value - found[name]), max(np.linalg.norm(value), 0.01)  # gains begin at 0
        assert apart <= 3e-6 * size, (name, apart / size)


def test_from_nvlabs_state(data, tmp_path):
    """Its images, moments and averages are gone on with."""
    torch_state = Trained(seed=1).steps(2)
    path = torch_state.save(tmp_path / "training-state-0000002.pt")
    known = {name: value for name, value in TINY.items() if name not in ("img_resolution", "img_channels", "label_dim")}
    (tmp_path / "training_options.json").write_text(
        json.dumps({"network_kwargs": {"class_name": "training.networks_edm2.Precond", **known}})
    )
    wanted = request(data, tmp_path / "run", 2048 + 2 * BATCH, resume=path, network={}, channels=None)
    warnings = []
    report = train(wanted, warn=warnings.append)
    assert (report.began, report.images) == (2048, 2048 + 2 * BATCH)
    training = read_record(report.checkpoint).training
    assert (training.steps, training.images) == (4, 2064)
    assert read_record(report.checkpoint).loss.P_mean == -0.8  # the file's


def test_from_a_snapshot_with_fewer_classes(digits_pkl, tmp_path):
    data = small_dataset(tmp_path / "five.zip", classes=5, channels=1)
    wanted = request(data, tmp_path / "run", 2 * BATCH, init=digits_pkl, network={}, channels=None, dropout=None,
                     rampup=0, lr=1e-6)  # fmt: skip
    report = train(wanted)
    state = jax_edm2.load_training_state(report.checkpoint)
    assert state.record.fine_tuned_from.name == "digits.pkl"
    assert (state.record.source, state.record.config.label_dim, state.record.config.dropout) == (None, 10, 0.1)
    with read_snapshot(digits_pkl) as snapshot:
        first = snapshot.read("unet.enc.8x8_conv.weight").astype(np.float32)
    first /= np.sqrt(np.square(first).mean(axis=(1, 2, 3), keepdims=True))  # normalised, as training has it
    found = state.averages[0.05]["params"]["unet"]["enc_8x8_conv"]["mpconv_weight"]
    assert np.abs(found - first).max() < 1e-3


def test_latents(tmp_path):
    images = np.random.default_rng(0).standard_normal((16, 8, 8, 8)).astype(np.float32)
    data = write_dataset(tmp_path / "latents.zip", images)
    report = train(request(data, tmp_path / "run", 2 * BATCH, cond=False))
    record = read_record(report.checkpoint)
    assert (record.config.img_channels, record.config.label_dim) == (4, 0)
    assert record.encoder.kind == "StabilityVAEEncoder"


def test_averages_of_any_length(whole, data, tmp_path):
    """edm2-phema takes the snapshots."""
    outdir = tmp_path / "run"
    more = {"batch": 512, "rampup": 0, "snapshot": 1024, "snapshot_dtype": "float32"}
    train(request(data, outdir, 4096, **more))
    assert len(list(outdir.glob("loss-*.png"))) == 4  # though there was no status
    report = reconstruct(PhemaRequest(outdir, tmp_path / "out", (0.15,)))
    assert report.made[0].record.average.images == 4096
    assert len(report.made[0].record.average.names) == 8


def test_a_second_one_is_refused(data, tmp_path):
    def inner():
        with pytest.raises(TrainError, match="another edm2-train is at work in it"):
            train(request(data, tmp_path / "run", BATCH))
        return True

    train(request(data, tmp_path / "run", 8 * BATCH), stop=inner)
    assert not (tmp_path / "run" / ".lock").exists()


def test_another_network_or_recipe(whole, data, tmp_path):
    outdir, warnings = tmp_path / "run", []
    shutil.copytree(whole[0].outdir, outdir)
    with pytest.raises(TrainError, match="was begun with model_channels 8, not 16"):
        plan_of(request(data, outdir, STEPS * BATCH, channels=16))
    with pytest.raises(TrainError, match=r"has averages of std 0.05,0.1: --stds 0.05,0.1"):
        train(request(data, outdir, STEPS * BATCH, stds=(0.1,)))
    train(request(data, outdir, STEPS * BATCH, lr=0.5, seed=3), warn=warnings.append)
    assert [line.split("training, ")[1] for line in warnings] == ["ref_lr was 0.01 and is 0.5", "seed was 0 and is 3"]


def test_a_loss_that_is_not_finite_is_told(data, tmp_path):
    warnings = []
    wanted = request(data, tmp_path, 4 * BATCH, status=2 * BATCH, P_mean=95.0)
    train(wanted, warn=warnings.append)
    assert "the loss is nan; a lower --lr, --ls or another --precision may help" in warnings[-1]
    assert '"Loss/loss": NaN' in (tmp_path / "stats.jsonl").read_text()


def test_tally():
    sigma, losses = np.float32([1e-9, 1.0, 1.0, 1e9]), np.float32([1, 2, 4, 9])
    tally = np.asarray(tallied(np.zeros((2, BINS), np.float32), sigma, losses))
    assert tally[:, [0, BINS // 2, -1]].tolist() == [[1, 6, 9], [1, 2, 1]]
    assert mean_loss(tally) == 4
    assert np.isnan(mean_loss(tally * 0))


def test_the_picture_of_the_loss(tmp_path):
    tally = np.zeros((2, BINS))
    tally[:, 20:40] = 1
    draw_losses(tally, "a run", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (960, 540)


def test_record_of_nothing_sound(tmp_path):
    """A folder that is no checkpoint, of a checkpoint's name, is passed over, too."""
    (tmp_path / "training-state-0000000008").mkdir()
    with pytest.raises(TrainError, match="no checkpoint in it is sound"):
        checkpoints.Checkpoints(tmp_path, 0, lambda _: None).newest(jax_edm2.load_training_state)


def test_options_that_make_no_sense(data, tmp_path):
    wanted = request(data, tmp_path / "run", BATCH)
    for text, change in {
        "--batch 9 does not divide by 2 devices": {"batch": 9},
        "--batch-gpu 3 does not divide the 4 images that each of 2 devices has": {"batch_gpu": 3},
    }.items():
        with pytest.raises(jax_edm2.converter.errors.UsageError, match=text):
            train(dataclasses.replace(wanted, **change))
        assert not (tmp_path / "run").exists()
