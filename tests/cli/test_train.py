"""edm2-train as its user meets it: wrong uses, interruption, a second process, and what it prints."""

import json
import signal
import socket
import zipfile

import numpy as np
import pytest

from jax_edm2.checkpoint import read_record
from tests.support.command_line import Tool
from tests.support.compiling import flags
from tests.support.datasets import small_dataset, write_dataset
from tests.support.trainings import BATCH

TRAIN = Tool("edm2-train", [])

NETWORK = ["--channels=8", "--network=channel_mult=[1,2]", "--network=num_blocks=0", "--network=attn_resolutions=[4]",
           "--network=channels_per_head=8", "--network=logvar_channels=16"]  # fmt: skip
SMALL = [*NETWORK, f"--batch={BATCH}", "--samples=0", "--snapshot=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Datasets that are sound, and some that are not."""
    folder = tmp_path_factory.mktemp("train")
    small_dataset(folder / "data.zip")
    small_dataset(folder / "unlabelled.zip", classes=0)
    small_dataset(folder / "grey.zip", channels=1)
    small_dataset(folder / "twelve.zip", classes=12, channels=1)
    small_dataset(folder / "large.zip", size=16)
    random = np.random.default_rng(0)
    write_dataset(folder / "latents.zip", random.standard_normal((4, 8, 8, 8)).astype(np.float32), [0, 1, 2, 3])
    write_dataset(folder / "odd.zip", random.standard_normal((4, 6, 8, 8)).astype(np.float32), [0, 1, 2, 3])
    (folder / "text.zip").write_text("no archive")
    with zipfile.ZipFile(folder / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with zipfile.ZipFile(folder / "escaping.zip", "w") as archive:
        archive.writestr("../out.png", b"")
    with zipfile.ZipFile(folder / "broken.zip", "w") as archive:
        archive.writestr("a.png", b"no picture")
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 0]]}))
    (folder / "notes.txt").write_text("no network")
    return folder


WRONG = [
    ([], "Missing option '--outdir'"),
    (["--outdir=out"], "Missing option '--data'"),
    (["--outdir=notes.txt", "--data=data.zip"], "notes.txt"),
    (["--data=nowhere.zip"], "nowhere.zip: there is no such dataset"),
    (["--data=text.zip"], "text.zip: is no ZIP file that can be read"),
    (["--data=empty.zip"], "empty.zip: holds no images"),
    (["--data=escaping.zip"], "'../out.png' is no name of a file in a dataset"),
    (["--data=broken.zip"], "'a.png' is no picture that can be read"),
    (["--data=unlabelled.zip"], "unlabelled.zip: has no labels; --cond=False trains without"),
    (["--data=odd.zip"], "float32 images of 6 channels; latents have 8"),
    (["--data=latents.zip", "--init=golden/digits.pkl"], "latents (means and standard deviations) of [8, 8, 8]"),
    (["--data=large.zip", "--init=golden/digits.pkl"], "the network is for pictures of [1, 8, 8]"),
    (["--data=twelve.zip", "--init=golden/digits.pkl"], "has 12 classes, and the network 10"),
    (["--preset=edm2-img512-xxxl"], "'edm2-img512-xxxl' is not one of 'edm2-img512-xxs'"),
    (["--duration=12Mib"], "'12Mib' is no number of images such as 131072, 128Ki, 8Mi or 1Gi"),
    (["--duration=0"], "'0' is not from 1 to 4Gi - 1"),
    (["--batch=-8"], "'-8' is no number of images"),
    (["--batch=7"], "--batch 7 does not divide by 2 devices"),
    (["--batch-gpu=3"], "--batch-gpu 3 does not divide the 4 images that each of 2 devices has"),
    (["--channels=0"], "0 is not in the range x>=1"),
    (["--dropout=1"], "1.0 is not in the range 0<=x<1"),
    (["--lr=0"], "0.0 is not in the range x>0"),
    (["--lr=fast"], "'fast' is not a valid float"),
    (["--stds=0.05,0.3"], "stds are above 0, below 0.2887"),
    (["--snapshot=500"], "--snapshot must be 1000 images or more, or 0"),
    (["--network=num_blocks"], "is no NAME=VALUE such as num_blocks=2"),
    (["--network=blocks=2"], "--network blocks: a network has attn_balance, attn_resolutions"),
    (["--network=num_blocks=-1"], "there is no such network: num_blocks must be an integer"),
    (["--network=img_resolution=16"], "--network img_resolution: a network has"),
    (["--init=golden/digits.pkl", "--resume=golden/digits.pkl"], "--init and --resume both say which network it is"),
    (["--init=notes.txt"], "notes.txt"),
    (["--init=nowhere.pkl"], "nowhere.pkl"),
    (["--resume=golden/digits.pkl"], "is one network and no training state; --init begins a training with it"),
    (["--init=golden/digits.pkl", "--channels=8"], "channels is what the network of golden/digits.pkl has"),
    (["--init=golden/digits.pkl", "--weights=net"], "holds one network; --weights chooses"),
    (["--weights=net"], "--weights chooses a network of --init FILE"),
    (["--config-from=edm2-img512-huge"], "--config-from edm2-img512-huge: there is no such file"),
    (["--pkl", "--snapshot-dtype=bfloat16"], "--pkl: NVlabs' tools do not read bfloat16"),
    (["--vae=notes.txt", "--samples=0"], "--vae is for the grid of samples"),
    (["--compile-for=gpu:h100"], "--compile-for goes with --dry-run"),
    (["--num-processes=2"], "--coordinator, --num-processes and --process-id go together"),
    (["--device=tpu"], "JAX finds no tpu here"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_wrong_uses(folder, monkeypatch, arguments, text):
    """One line, exit code 2, and no folder."""
    from jax_edm2.converter.processes import ROOT

    monkeypatch.chdir(folder)
    arguments = [each.replace("golden/", f"{ROOT}/golden/") for each in arguments]
    text = text.replace("golden/", f"{ROOT}/golden/")
    given = {each.partition("=")[0] for each in arguments}
    defaults = {"--outdir": "out", "--data": "grey.zip" if "--init" in given else "data.zip"}
    if given and given != {"--outdir"}:
        arguments += [f"{name}={value}" for name, value in defaults.items() if name not in given]
    own = {} if given & {"--init", "--batch"} else {"--batch": BATCH}
    TRAIN.fails(*arguments, *(f"{name}={value}" for name, value in own.items()), text=text)
    assert not (folder / "out").exists()


def test_dry_run(folder, tmp_path):
    outdir = tmp_path / "out"
    result = TRAIN.run(f"--outdir={outdir}", f"--data={folder / 'data.zip'}", *SMALL, "--batch-gpu=2", "-n", "--fsdp")
    assert result.returncode == 0, result.stderr
    assert '"model_channels": 8' in result.stdout
    assert "begins with a new network" in result.stdout
    assert "in 2 parts" in result.stdout
    assert not outdir.exists()
    arguments = [f"--outdir={outdir}", f"--data={folder / 'data.zip'}", "--preset=edm2-img512-xs", "-n", "--json"]
    needed = json.loads(TRAIN.run(*arguments).stdout)
    assert (needed["options"]["total_nimg"], needed["parameters"]) == (2**31, 113_190_949)
    assert needed["bytes"]["Adam's moments"] == 8 * needed["parameters"] + 4  # and its count


@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_ends_with_a_checkpoint(folder, tmp_path, signal_, code):
    """At a signal, however far it is; the same command goes on from there."""
    from tests.support import children

    tool = Tool("edm2-train", children.command("jax_edm2.converter.cli.train"))
    arguments = [f"--outdir={tmp_path / 'out'}", f"--data={folder / 'data.zip'}", *SMALL, f"--status={BATCH}"]
    process = tool.start(*arguments, "--duration=1Mi")
    for _ in range(3):
        assert process.stdout.readline().startswith("kimg ")
    process.send_signal(signal_)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    lines = [line for line in stderr.splitlines() if line and not line.startswith("training: ")]
    interrupted = ["edm2-train: interrupted"] * (signal_ == signal.SIGINT)
    assert lines == ["edm2-train: ends after this step, with a checkpoint; Ctrl-C again ends it at once", *interrupted]
    (checkpoint,) = (tmp_path / "out").glob("training-state-*")
    images = read_record(checkpoint).training.images
    assert f"checkpoint: {checkpoint}" in stdout
    assert ", not to its end, " in stdout
    result = TRAIN.run(*arguments, f"--duration={images + BATCH}", "--json")
    report = json.loads(result.stdout)
    assert (report["began"], report["images"], report["finished"]) == (images, images + BATCH, True)


def test_two_processes_are_one_training(folder, tmp_path):
    """Each with one device, beside one process with both: the same parameters but for roundings."""
    from jax_edm2.training_state import load_training_state
    from tests.support import children

    tool = Tool("edm2-train", children.command("jax_edm2.converter.cli.train"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [f"--data={folder / 'data.zip'}", *SMALL, "--duration=24", "--rampup=0", "--lr=1e-3", "--device=cpu"]
    one = {"XLA_FLAGS": flags(devices=1)}
    processes = [
        tool.start(
            f"--outdir={tmp_path / 'two'}", *more, "--fsdp", f"--coordinator=127.0.0.1:{port}", "--num-processes=2",
            f"--process-id={number}", env=one,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "trained from 0.0 to 0.0 kimg" in outputs[0][0]
    assert "kimg" not in outputs[1][0]
    assert TRAIN.run(f"--outdir={tmp_path / 'one'}", *more).returncode == 0
    from flax.traverse_util import flatten_dict

    found, expected = (
        flatten_dict(load_training_state(tmp_path / name / "training-state-0000000024").variables)
        for name in ("two", "one")
    )
    for name, value in expected.items():
        size = max(np.linalg.norm(value), 0.01)
        assert np.linalg.norm(value - found[name]) <= 1e-4 * size, name
