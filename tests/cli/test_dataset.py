"""edm2-dataset as its user meets it: wrong uses, what it prints, and Ctrl-C."""

import json
import signal
import time
import zipfile

import numpy as np
import PIL.Image
import pytest

from tests.corpora.hostile_datasets import SOUND, npy, png, vae
from tests.support import children
from tests.support.command_line import Tool

TOOL = Tool("edm2-dataset", children.command("jax_edm2.converter.cli.dataset"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes, latents, and a VAE."""
    folder = tmp_path_factory.mktemp("dataset")
    vae(folder)
    for number in range(4):
        (folder / "in" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        (folder / "in" / f"class{number % 2}" / f"{number}.png").write_bytes(png((20, 16)))
    (folder / "latents").mkdir()
    (folder / "latents" / "a.npy").write_bytes(npy(SOUND))
    return folder


WRONG = [
    ([], "Missing command"),
    (["mend"], "No such command 'mend'"),
    (["convert", "--dest=out.zip"], "Missing option '--source'"),
    (["convert", "--source=in"], "Missing option '--dest'"),
    (["convert", "--source=nowhere", "--dest=out.zip"], "nowhere: there is no such file or folder"),
    (["convert", "--source=in", "--dest=out.zip"], "'class0/0.png' is of 20 x 16, and pictures must be square"),
    (["convert", "--source=in", "--dest=out.zip", "--resolution=64"], "'64' is no resolution such as 512x512"),
    (["convert", "--source=in", "--dest=out.zip", "--resolution=-4x4"], "'-4x4' is no resolution"),
    (["convert", "--source=in", "--dest=out.zip", "--resolution=\u0661x\u0661"], "is no resolution"),
    (["convert", "--source=in", "--dest=out.zip", "--resolution=48x48"], "--resolution 48x48: pictures must be square"),
    (
        ["convert", "--source=in", "--dest=out.zip", "--transform=center-crop"],
        "center-crop needs --resolution, such as",
    ),
    (["convert", "--source=in", "--dest=out.zip", "--transform=middle"], "'middle' is not one of 'center-crop', "),
    (["convert", "--source=in", "--dest=out.zip", "--max-images=0"], "0 is not in the range x>=1"),
    (["convert", "--source=latents", "--dest=out.zip"], "latents: holds no files with the ending .png"),
    (["encode", "--source=in", "--dest=out.zip", "--vae=nowhere"], "nowhere: there is no such file; a VAE is"),
    (["encode", "--source=in", "--dest=out.zip", "--vae=vae", "--batch=0"], "0 is not in the range"),
    (["encode", "--source=in", "--dest=out.zip", "--vae=vae", "--device=tpu"], "JAX finds no tpu here"),
    (["decode", "--source=in", "--dest=out.zip", "--vae=vae"], "in: holds no files with the ending .npy"),
    (["decode", "--source=latents", "--dest=out.zip", "--vae=vae", "--seed=-1"], "-1 is not in the range"),
    (["decode", "--source=latents", "--dest=in/class0/0.png", "--vae=vae"], "is a file, and no folder"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_wrong_uses(folder, monkeypatch, arguments, text):
    monkeypatch.chdir(folder)
    TOOL.fails(*arguments, text=text)
    assert not (folder / "out.zip").exists()


def test_there_and_back(folder, tmp_path, monkeypatch):
    """Each command's line, and its record for machines, which is all that it prints."""
    monkeypatch.chdir(folder)
    squares, latents, again = (tmp_path / name for name in ("squares.zip", "latents.zip", "again"))
    result = TOOL.run("convert", "--source=in", f"--dest={squares}", "--transform=center-crop", "--resolution=16x16")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{squares}: 4 images of 3 x 16 x 16, of 2 classes, ")
    computing = ("--model_url=vae", "--device=cpu")  # as NVlabs spells it
    result = TOOL.run("encode", f"--source={squares}", f"--dest={latents}", *computing, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    expected = {"images": 4, "skipped": 0, "classes": 2, "shape": [8, 8, 8], "dest": str(latents)}
    assert expected.items() <= report.items()
    result = TOOL.run("decode", f"--source={latents}", f"--dest={again}", *computing, "--max-images=3")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{again}: 3 images of 3 x 16 x 16, of 2 classes, ")
    assert len(list(again.rglob("*.png"))) == 3


def test_force_replaces_a_zip(folder, tmp_path):
    arguments = ("convert", f"--source={folder / 'in'}", f"--dest={tmp_path / 'x.zip'}", "--resolution=8x8")
    (tmp_path / "x.zip").write_text("mine")
    TOOL.fails(*arguments, text="x.zip exists; use --force to replace it")
    assert (tmp_path / "x.zip").read_text() == "mine"
    assert TOOL.run(*arguments, "--force").returncode == 0
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert len(archive.namelist()) == 5


def test_a_label_that_lacks_is_said(folder, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.png").write_bytes(png())
    (tmp_path / "in" / "dataset.json").write_text('{"labels": [["a.png", 1]]}')
    result = TOOL.run("convert", f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'x.zip'}")
    assert result.returncode == 0
    assert result.stderr.startswith("edm2-dataset: warning: ")
    assert "dataset.json has no label for 'b.png' and 0 others" in result.stderr
    assert "without labels" in result.stdout


@pytest.mark.parametrize("dest", ["out.zip", "out"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path, dest, sent, code):
    """Nothing is left, and a line says so."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(noise).save(tmp_path / "in" / "0.png")
    for number in range(1, 2000):
        (tmp_path / "in" / f"{number}.png").hardlink_to(tmp_path / "in" / "0.png")
    places = f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'new' / dest}"
    process = TOOL.start("convert", *places, "--transform=center-crop", "--resolution=256x256")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("new/.out*")):  # what is being written
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, "")
    first, *rest = filter(None, stderr.splitlines())
    assert first.startswith(f"{tmp_path / 'new' / dest}: is not written; ")
    assert first.endswith(" of 2000 images were done")
    assert rest == ["edm2-dataset: interrupted"] * (sent == signal.SIGINT)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
