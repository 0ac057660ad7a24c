"""Stores on the command line: every option that reads a file takes its URL, and outputs go to buckets."""

import json

import pytest
from PIL import Image

from jax_edm2.converter.processes import ROOT
from tests.support.command_line import Tool
from tests.support.killed import write_snapshots

CONVERT, DATASET, PHEMA, SAMPLE, TRAIN, VERIFY = (
    Tool(f"edm2-{name}", []) for name in ("convert", "dataset", "phema", "sample", "train", "verify")
)
FIVE = (ROOT / "golden" / "digits-five.zip").read_bytes


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def done(tool, *arguments) -> str:
    result = tool.run(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def snapshots(tmp_path):
    """Of a small network at several times: contents by name."""
    (tmp_path / "raw").mkdir()
    return {path.name: path.read_bytes() for path in write_snapshots(tmp_path / "raw").iterdir()}


def test_averages_of_a_bucket_and_of_the_hub(s3, hub, snapshots, tmp_path):
    for name, data in snapshots.items():
        s3.put(f"raw/{name}", data)
    s3.put("raw/below/run-0000196-0.050.pkl", b"in another folder")
    s3.put("raw-other/run-0000196-0.050.pkl", b"in another one")
    hub.commit("somebody/raw", {f"all/{name}": data for name, data in snapshots.items()})
    wanted = ("--outstd=0.06,0.08", "--json")
    local = json.loads(done(PHEMA, f"--indir={tmp_path / 'raw'}", "--outdir=out", *wanted))["made"]
    for indir, outdir in [("s3://bucket/raw", "s3://bucket/averages/"), ("hf://somebody/raw/all", "s3://bucket/other")]:
        made = json.loads(done(PHEMA, f"--indir={indir}", f"--outdir={outdir}", *wanted))["made"]
        assert [each["digest"] for each in made] == [each["digest"] for each in local]
        for each, here in zip(made, local, strict=True):
            key = each["output"].removeprefix("s3://bucket/")
            assert s3.get(key) == (tmp_path / "here" / here["output"]).read_bytes()
    arguments = ("--indir=s3://bucket/raw", "--outdir=s3://bucket/averages", "--outstd=0.06,0.08")
    PHEMA.fails(*arguments, text="0.060.safetensors exists; use --force to replace it")
    assert done(PHEMA, *arguments, "--skip") == "2 there already\n"
    PHEMA.fails("--indir=s3://bucket/none", *arguments[1:], "--force", text="s3://bucket/none: has no snapshots with")
    PHEMA.fails(*arguments, "--format=orbax", text="in a store we write single files, not orbax folders")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out"]


def test_pictures_in_a_bucket(s3, digits_checkpoint, tmp_path):
    """The files are those that would be here; what is there is left; what was made otherwise is refused."""
    net = s3.put("digits.safetensors", digits_checkpoint.read_bytes())
    common = (f"--net={net}", "--seeds=0-4", "--steps=4", "--device=cpu", "--grid")
    done(SAMPLE, *common, "--outdir=out")
    assert done(SAMPLE, *common, "--outdir=s3://bucket/out").startswith("s3://bucket/out: 5 pictures, ")
    for path in (tmp_path / "here" / "out").iterdir():
        assert s3.get(f"out/{path.name}") == path.read_bytes()
    assert sorted(key for key in s3.names() if key.startswith("out/")) == [
        *(f"out/{seed:06d}.png" for seed in range(5)), "out/grid.png",
    ]  # fmt: skip
    s3.delete("out/000003.png")
    again = (*common, "--skip-existing", "--outdir=s3://bucket/out")
    assert done(SAMPLE, *again).startswith("s3://bucket/out: 1 pictures, 4 there already")
    assert s3.get("out/000003.png") == (tmp_path / "here" / "out" / "000003.png").read_bytes()
    SAMPLE.fails(*again, "--S_churn=3", text="s3://bucket/out/000000.png and 4 more were made otherwise: S_churn")
    done(SAMPLE, f"--net={net}", "--seeds=1001", "--steps=4", "--device=cpu", "--subdirs", "--outdir=s3://bucket/sub")
    s3.refuse = lambda environ, number: environ["REQUEST_METHOD"] == "PUT"
    SAMPLE.fails(*common, "--outdir=s3://bucket/no", text="the store refuses it to who you are")
    assert "sub/001000/001001.png" in s3.names()
    SAMPLE.fails(*common, "--outdir=hf://me/pictures", text="on the hub every file is a commit")


def test_datasets(s3, tmp_path):
    Image.new("L", (9, 8), 200).save(tmp_path / "a.png")
    s3.put("five.zip", FIVE())
    arguments = ("convert", "--source=s3://bucket/five.zip", "--resolution=8x8")
    done(DATASET, *arguments, "--dest=here.zip")
    done(DATASET, *arguments, "--dest=s3://bucket/packed/there.zip")
    assert s3.get("packed/there.zip") == (tmp_path / "here" / "here.zip").read_bytes()
    DATASET.fails(*arguments, "--dest=s3://bucket/packed/there.zip", text="there.zip exists; use --force")
    DATASET.fails(*arguments, "--dest=s3://bucket/folder", text="let its name end in .zip")


def test_training_with_what_is_in_stores(s3, digits_checkpoint, tmp_path):
    """A plan reads the data, the weights and the configuration."""
    for name, data in (("five.zip", FIVE()), ("digits.safetensors", digits_checkpoint.read_bytes())):
        s3.put(name, data)
    data = "--data=s3://bucket/five.zip"
    for more in ("--init=s3://bucket/digits.safetensors", "--config-from=s3://bucket/digits.safetensors"):
        plan = done(TRAIN, "--outdir=run", data, more, "--dry-run", "--device=cpu")
        assert "five.zip" in plan
        assert "nothing was trained" in plan
    TRAIN.fails("--outdir=s3://bucket/run", data, text="s3://bucket/run is a URL, and this is to be on a disk")
    TRAIN.fails("--outdir=run", "--data=s3://bucket/six.zip", text="s3://bucket/six.zip: there is no such object")


def test_proofs(s3, digits_checkpoint, digits_pkl, tmp_path):
    snapshot, checkpoint = (
        s3.put("d.pkl", digits_pkl.read_bytes()),
        s3.put("d.safetensors", digits_checkpoint.read_bytes()),
    )
    few = ("--checks=parameters", "--device=cpu")
    said = done(VERIFY, snapshot, *few, "--save-truth=s3://bucket/truth.npz")
    assert "use it with --truth s3://bucket/truth.npz" in said
    assert "AGREES" in done(VERIFY, "--truth=s3://bucket/truth.npz", f"--checkpoint={checkpoint}", "--device=cpu")
    VERIFY.fails(snapshot, *few, "--save-truth=s3://bucket/truth.npz", text="truth.npz exists; use --force")
    assert "kind" in done(CONVERT, "inspect", "s3://bucket/truth.npz")
    VERIFY.fails(snapshot, *few, "--report=s3://bucket/report", text="this is to be on a disk")


def test_the_original_of_a_copy(s3, digits_pkl, digits_checkpoint, tmp_path):
    like, source = s3.put("d.pkl", digits_pkl.read_bytes()), s3.put("d.safetensors", digits_checkpoint.read_bytes())
    done(CONVERT, source, f"--like={like}", "-o", "copy.pkl")
    assert (tmp_path / "here" / "copy.pkl").read_bytes() == digits_pkl.read_bytes()
    CONVERT.fails(source, f"--like={like}", "--cache-dir=empty", "--offline", "-o", "b.pkl", text="--offline forbids")
