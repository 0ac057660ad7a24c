"""Presets, and the commands that work with what is fetched."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import jax_edm2
from jax_edm2.converter import phema, presets
from jax_edm2.converter.cli.convert import edm2_convert
from jax_edm2.converter.cli.verify import edm2_verify
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.networks import record_of
from jax_edm2.converter.presets import ALIASES, PRESETS, PresetError, find, tensor_bytes, url
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.sources import Fetching
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import published_config
from tests.support.server import Server

MAIN, GUIDE = "edm2-img512-s-2147483-0.085", "edm2-img512-xs-uncond-2147483-0.085"


@pytest.fixture
def server(digits_pkl, tmp_path, monkeypatch):
    """Stands for NVIDIA's: every published file is the digits snapshot. The working folder is empty."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "dnnlib"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with Server(digits_pkl.read_bytes()) as server:
        monkeypatch.setattr(presets, "ROOT", server.url("posthoc"))
        monkeypatch.setattr(presets, "RAW_ROOT", server.url("raw"))
        yield server


def convert(*arguments):
    """Standard output. Raises what the command raises."""
    result = CliRunner().invoke(edm2_convert, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def cache(*arguments):
    return CliRunner().invoke(edm2_convert, ["cache", *arguments], standalone_mode=False)


# Names


def test_every_preset_of_nvlabs():
    assert len(PRESETS) == len({preset.name for preset in PRESETS}) == 36
    assert sum(preset.guide is not None for preset in PRESETS) == 20
    assert all((preset.guidance == 1) == (preset.guide is None) for preset in PRESETS)
    assert all((preset.fid is None) != (preset.fd_dinov2 is None) for preset in PRESETS)
    best = find("edm2-img64-s-autog-fid")
    assert (best.net, best.guide) == ("edm2-img64-s-1073741-0.045", "edm2-img64-xs-0134217-0.110")
    assert (best.guidance, best.fid, best.fd_dinov2) == (1.7, 1.01, None)


def test_names(server):
    assert set(ALIASES) == {f"edm2-img512-{size}" for size in presets.MODEL_CHANNELS} | {
        f"edm2-img64-{size}" for size in ("s", "m", "l", "xl")
    }
    assert find("edm2-img512-s") is find("edm2-img512-s-fid")
    for name in ("edm2-img512-xs-uncond-2147483-0.045", "edm2-img512-xs-uncond-2147483-0.045.pkl"):
        assert url(find(name).net) == f"{presets.ROOT}/edm2-img512-xs-uncond-2147483-0.045.pkl"
    raw = "edm2-img64-s-uncond-0134217-0.050"
    assert url(find(raw).net) == f"{presets.RAW_ROOT}/edm2-img64-s-uncond/{raw}.pkl"
    for wrong, near in (
        ("edm2-img512-s-gui-dino", "did you mean edm2-img512-s-guid-dino"),
        ("edm2-img512-xxxl", "did you mean edm2-img512-xxl"),
        ("stylegan", "edm2-convert --list-presets shows all"),
    ):
        with pytest.raises(PresetError, match=near):
            find(wrong)


@pytest.mark.parametrize("name", ["edm2-img512-xs", "edm2-img64-m", "edm2-img512-s-uncond", "edm2-img512-xxl"])
def test_sizes_are_those_of_the_pytorch_networks(name):
    import torch

    kwargs, _ = published_config(name)
    with torch.device("meta"):
        net = Precond(**kwargs)
    assert tensor_bytes(f"{name}-2147483-0.100") == 2 * sum(tensor.numel() for tensor in net.state_dict().values())
    config = presets.config(f"{name}-2147483-0.100")
    assert all(getattr(config, key) == value for key, value in kwargs.items())


def test_list():
    lines = convert("--list-presets").splitlines()
    assert sum(line.startswith("edm2-") for line in lines) == 36
    assert max(map(len, lines)) <= 110
    assert any("edm2-img512-s-guid-dino" in line and "1.9" in line and "52.32" in line for line in lines)
    listed = json.loads(convert("--list-presets", "--json"))
    assert len(listed["presets"]) == 36
    assert listed["presets"][1]["bytes"] == tensor_bytes("edm2-img512-xs-2147483-0.200")
    assert len(listed["networks"]) == len({name for p in PRESETS for name in (p.net, p.guide) if name})


# Converting them


def test_a_preset(server, digits_pkl):
    said = convert("--preset", "edm2-img512-s")
    assert said.startswith("edm2-img512-s-2147483-0.130.safetensors: 63 tensors")
    record = jax_edm2.read_record("edm2-img512-s-2147483-0.130.safetensors")
    assert record.source.name == f"{presets.ROOT}/edm2-img512-s-2147483-0.130.pkl"
    assert record.source.sha256 == hashlib.sha256(digits_pkl.read_bytes()).hexdigest()
    assert (record.source.kimg, record.source.ema_std) == (2147483, 0.13)
    assert record.license == "CC BY-NC-SA 4.0"
    assert record.sampler.guide is None
    with pytest.raises(FileExistsError):
        convert("--preset", "edm2-img512-s")
    convert("--preset", "edm2-img512-s-fid", "--force", "--offline")
    assert len(server.requests) == 1
    with pytest.raises(ConverterError, match="--offline forbids"):
        convert("--preset", "edm2-img512-m", "--offline")


def test_a_guided_preset(server, tmp_path):
    report = json.loads(convert("--preset", "edm2-img512-s-guid-dino", "--json"))
    assert report["output"] == f"{MAIN}.safetensors"
    assert report["guide"]["output"] == f"{GUIDE}.safetensors"
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        f"{MAIN}.safetensors",
        f"{GUIDE}.safetensors",
    ]
    sampler = jax_edm2.read_record(f"{MAIN}.safetensors").sampler
    assert (sampler.guidance, sampler.guide) == (1.9, f"{GUIDE}.safetensors")
    assert jax_edm2.load(sampler.guide)[0].config.img_resolution == 8
    assert jax_edm2.read_record(sampler.guide).sampler.guide is None


def test_a_guide_that_is_there_already(server, tmp_path):
    """Presets share guides: one that is what would be written is kept, anything else is not touched."""
    folder = tmp_path / "weights"
    folder.mkdir()
    convert("--preset", GUIDE, "-o", str(folder))
    before = (folder / f"{GUIDE}.safetensors").stat().st_ino
    said = convert("--preset", "edm2-img512-s-guid-dino", "-o", str(folder / "main.safetensors"))
    assert f"{GUIDE}.safetensors: 63 tensors, 0.7 M parameters, 1.4 MB, float16, there already" in said
    assert (folder / f"{GUIDE}.safetensors").stat().st_ino == before
    assert jax_edm2.read_record(folder / "main.safetensors").sampler.guide == f"{GUIDE}.safetensors"
    with pytest.raises(FileExistsError, match=GUIDE):  # another dtype is another checkpoint
        convert("--preset", "edm2-img512-s-guid-dino", "-o", str(folder / "again.safetensors"), "--dtype", "float32")
    assert not (folder / "again.safetensors").exists()


def test_wrong_ways(server, digits_pkl):
    for arguments, text in (
        ([], "give a SOURCE"),
        (["x.pkl", "--preset", "edm2-img512-s"], "x.pkl and --preset edm2-img512-s are two snapshots"),
        (["edm2-img512-s"], "did you mean --preset edm2-img512-s"),
        (["--preset", "edm2-img512-s-guid-dino", "--sha256", "0" * 64], "--sha256 is for one file"),
        ([str(digits_pkl), "--sha256", "123"], "is no sha256"),
        ([str(digits_pkl), "--sha256", "0" * 64], "as demanded"),
        (["ftp://a.example/x.pkl"], "only http and https"),
    ):
        with pytest.raises(Exception, match=text):
            convert(*arguments)
    sha256 = hashlib.sha256(digits_pkl.read_bytes()).hexdigest()
    convert(str(digits_pkl), "--sha256", sha256)
    with pytest.raises(ConverterError, match="as demanded"):
        convert("--preset", "edm2-img512-m", "--sha256", "0" * 64)
    convert("--preset", "edm2-img512-m", "--sha256", sha256)


def test_secrets_in_a_url_are_not_recorded(server):
    secret = server.url("mine-0000512-0.100.pkl").replace("//", "//user:secret@") + "?token=secret"
    convert(secret)
    for path in ("mine-0000512-0.100.safetensors", *presets_folder(server)):
        with open(path, "rb") as file:
            assert b"secret" not in file.read()
    assert jax_edm2.read_record("mine-0000512-0.100.safetensors").source.name == server.url("mine-0000512-0.100.pkl")


def presets_folder(server):
    from jax_edm2.converter.downloads.cache import cache_in

    return [path for path in cache_in().folder.iterdir() if path.suffix == ".json"]


def test_verifying_a_preset(server, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["--preset", "edm2-img512-s", "--checks", "parameters", "--device", "cpu"]
    result = CliRunner().invoke(edm2_verify, arguments, standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "AGREES" in result.output
    result = CliRunner().invoke(edm2_verify, ["--preset", "edm2-img512-w", "--device", "cpu"], standalone_mode=False)
    assert "did you mean" in str(result.exception)


# The cache


def test_cache_commands(server, tmp_path):
    convert("--preset", "edm2-img512-s-guid-dino")
    listed = cache("list").output
    assert f"1,497,170  {hashlib.sha256(server.data).hexdigest()[:16]}  {MAIN}.pkl" in listed
    assert f"{tmp_path / 'dnnlib' / 'downloads'}: 2 files, 3.0 MB" in listed
    found = json.loads(cache("list", "--json").output)
    assert {entry["name"] for entry in found["files"]} == {f"{MAIN}.pkl", f"{GUIDE}.pkl"}
    assert found["files"][0]["url"].startswith("http://127.0.0.1")
    result = cache("verify")
    assert result.return_value == 0
    assert result.output.count("ok  ") == 2
    path = next(path for path in (tmp_path / "dnnlib" / "downloads").iterdir() if path.name.endswith(f"{MAIN}.pkl"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = cache("verify")
    assert result.return_value == 2
    assert result.output.count("ALTERED") == 1
    assert "1 files and 0 parts removed, 1.5 MB" in cache("clear", f"{MAIN}.pkl").output
    assert "holds no nothing.pkl" in str(cache("clear", "nothing.pkl").exception)
    assert "give the NAME" in str(cache("clear").exception)
    (tmp_path / "dnnlib" / "downloads" / f"{'0' * 32}_stylegan.pkl").write_text("somebody else's")
    assert "1 files and 0 parts removed" in cache("clear", "--all").output
    assert [entry.name for entry in (tmp_path / "dnnlib" / "downloads").iterdir()] == [f"{'0' * 32}_stylegan.pkl"]


def test_averages_of_a_published_run(server, digits_pkl, tmp_path, monkeypatch):
    """Its snapshots are fetched up to the time that is asked for, and no more than once."""
    monkeypatch.setitem(presets.RAW_LENGTHS, "edm2-img512-xs", 160)
    assert len(presets.raw_snapshots("edm2-img512-xs")) == 10
    request = phema.PhemaRequest(Path("edm2-img512-xs"), tmp_path / "out", (0.07, 0.12), outkimg=100663)
    for each in (request, dataclasses.replace(request, force=True, fetching=Fetching(offline=True))):
        made = phema.reconstruct(each).made
        assert len(server.requests) == 6
    times = [name.split("-")[-2] for name in made[0].record.average.names]
    assert times == ["0033554", "0033554", "0067108", "0067108", "0100663", "0100663"]
    assert made[0].path.name == "phema-0100663-0.070.safetensors"
    with read_snapshot(digits_pkl) as snapshot:  # of which all are copies
        assert {each.record.digest for each in made} == {record_of(snapshot).digest}
    with pytest.raises(phema.PhemaError, match="there is no such folder, and there are no raw snapshots of a run 'x'"):
        phema.reconstruct(dataclasses.replace(request, indir=Path("x")))
