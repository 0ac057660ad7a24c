"""edm2-metrics as its user meets it: wrong uses, what it prints, Ctrl-C and going on."""

import json
import signal
import time

import numpy as np
import pytest
import torch

from jax_edm2.converter.feature_statistics import read_statistics, write_statistics
from jax_edm2.evaluation import Statistics
from tests.support import children
from tests.support.command_line import Tool
from tests.support.datasets import small_dataset, write_dataset
from tests.support.detectors import torch_inception

METRICS = Tool("edm2-metrics", children.command("jax_edm2.converter.cli.metrics"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, statistics and weights that are sound, and some that are not."""
    folder = tmp_path_factory.mktemp("metrics")
    small_dataset(folder / "data.zip", count=12)
    write_dataset(folder / "latents.zip", np.zeros((4, 8, 8, 8), np.float32))
    write_statistics(folder / "ref.pkl", {"fid": Statistics(np.zeros(2048), np.eye(2048), 5000)})
    np.savez(folder / "ref.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(folder / "three.npz", mu=np.zeros(3), sigma=np.eye(3))
    torch.save(torch_inception().state_dict(), folder / "inception.pth")
    torch.save({"weight": torch.zeros(3)}, folder / "other.pth")
    (folder / "text.zip").write_text("no archive")
    (folder / "notes.txt").write_text("no statistics")
    return folder


CALC = ["calc", "--images=data.zip", "--ref=ref.pkl", "--metrics=fid", "--num=8"]
GEN = ["gen", "--ref=ref.pkl", "--metrics=fid", "--num=8"]
SWEEP = ["sweep", "--indir=nowhere", "--outdir=out", "--outstd=0.1", "--ref=ref.pkl", "--metrics=fid"]
WRONG = [
    (["calc"], "Missing option '--images'"),
    (["calc", "--images=data.zip"], "Missing option '--ref'"),
    ([*CALC, "--images=nowhere.zip"], "nowhere.zip"),
    ([*CALC, "--images=text.zip"], "text.zip: is no ZIP file that can be read"),
    ([*CALC, "--images=latents.zip"], "edm2-dataset decode makes pictures of latents"),
    ([*CALC, "--num=13"], "data.zip: has 12 pictures, and 13 are wanted: --num takes fewer"),
    ([*CALC, "--num=1"], "1 is not in the range x>=2"),
    ([*CALC, "--ref=nowhere.pkl"], "nowhere.pkl: there is no such file"),
    ([*CALC, "--ref=notes.txt"], "notes.txt: "),
    ([*CALC, "--ref=data.zip"], "data.zip: has 0 arrays mu, not one"),
    ([*CALC, "--metrics=fd_dinov2"], "ref.pkl: has statistics of fid, and not of fd_dinov2"),
    ([*CALC, "--metrics=is"], "--metrics 'is': there are fid and fd_dinov2"),
    ([*CALC, "--metrics=fid,fid"], "--metrics lists none, or one twice"),
    ([*CALC, "--inception=nowhere.pth"], "nowhere.pth: there is no such file"),
    ([*CALC, "--inception=other.pth"], "other.pth: does not hold the Inception network of FID: - Conv2d_1a_3x3"),
    ([*CALC, "--inception=notes.txt"], "notes.txt: is no file of torch or NVlabs with weights"),
    ([*CALC, "--inception=ref.pkl"], "ref.pkl: "),
    ([*CALC, "--offline"], "pt_inception-2015-12-05-6726825d.pth"),
    ([*CALC, "--batch=0"], "0 is not in the range"),
    ([*CALC, "--device=tpu"], "JAX finds no tpu here"),
    ([*CALC, "--process-id=1"], "--coordinator, --num-processes and --process-id go together"),
    (GEN, "give --preset NAME or --net PATH"),
    ([*GEN, "--net=nowhere.pkl"], "nowhere.pkl: there is no such file or folder"),
    ([*GEN, "--net=notes.txt", "--inception=inception.pth"], "notes.txt: "),
    ([*GEN, "--net=data.zip", "--guidance=2"], "--guidance needs a guiding network"),
    ([*GEN, "--repeats=0"], "0 is not in the range"),
    (["ref", "--data=data.zip"], "Missing option '--dest'"),
    (["ref", "--data=data.zip", "--dest=ref.pkl"], "ref.pkl: is there already; use --force to replace it"),
    (SWEEP, "nowhere: there is no such folder, and "),
    ([*SWEEP, "--outstd=0.3"], "--outstd 0.3: a std must be above 0 and below 0.289"),
    ([*SWEEP, "--guidance=1,1"], "has a weight twice"),
    ([*SWEEP, "--guidance=2"], "--guidance needs a guiding network: --gnet, or --unconditional-guide"),
    ([*SWEEP, "--net=ref.pkl"], "No such option"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_wrong_uses(folder, tmp_path, monkeypatch, arguments, text):
    """One line, exit code 2, and nothing new."""
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    more = [f"--cache-dir={tmp_path}"] if "--offline" in arguments else []
    METRICS.fails(*arguments, *more, text=text)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_statistics_and_a_metric(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, data = f"--inception={folder / 'inception.pth'}", folder / "data.zip"
    result = METRICS.run("ref", f"--data={data}", "--dest=new/ref.pkl", "--metrics=fid", weights, "--batch=3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("new/ref.pkl: of 12 images, ")
    assert read_statistics(tmp_path / "new" / "ref.pkl")["fid"].count == 12
    result = METRICS.run("calc", f"--images={data}", "--ref=new/ref.pkl", "--num=6", weights, "--batch=3", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["best"]["fid"] == found["results"][0]["fid"]["value"] > 1
    assert found["detectors"]["fid"]["name"] == "inception.pth"
    assert result.stderr.splitlines() == [
        "edm2-metrics: warning: ref.pkl has no statistics of fd_dinov2, which is left out",
        "edm2-metrics: warning: 6 pictures do not span the 2,048 features of fid: it is far too large",
    ]


def test_interrupted_and_gone_on_with(folder, tmp_path):
    """Ctrl-C keeps what is done, and the same command ends with what it would have had."""
    data, progress, dest = tmp_path / "many.zip", tmp_path / "progress", tmp_path / "ref.pkl"
    small_dataset(data, count=40)
    weights = f"--inception={folder / 'inception.pth'}"
    arguments = ("ref", f"--data={data}", f"--dest={dest}", "--metrics=fid", weights, "--batch=1")
    arguments += (f"--resume={progress}", "--save-every=0")
    process = METRICS.start(*arguments)
    while not list(progress.glob("*.safetensors")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output == ""
    assert "ends after this batch, which is kept" in errors
    assert "pictures are done, in " in errors
    (part,) = progress.iterdir()
    assert part.suffix == ".safetensors"
    assert not dest.exists()
    result = METRICS.run(*arguments)
    assert result.returncode == 0, result.stderr
    assert read_statistics(dest)["fid"].count == 40
    assert [path.suffix for path in progress.iterdir()] == [".pkl"]


def test_help(folder):
    result = METRICS.run("--help")
    assert result.returncode == 0
    assert "calc" in result.stdout
    for command in ("calc", "gen", "ref", "sweep"):
        text = METRICS.run(command, "--help").stdout
        assert max(map(len, text.splitlines())) <= 80
        assert "--resume" in text
