"""edm2-convert check and inspect, several sources, colours and completion."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import jax_edm2
from jax_edm2.converter.cli.run import GOOD, say
from jax_edm2.converter.processes import ROOT
from tests.support.command_line import Tool

CONVERT = Tool("edm2-convert", ["edm2-convert"])
DIGEST = "sha256:a9b20029022ab12dd3dfa4fc93eb415ecdeda2f1049c70c0c9781250de688377"


@pytest.fixture(scope="module")
def files(digits_pkl, digits_checkpoint, tmp_path_factory):
    orbax = tmp_path_factory.mktemp("orbax") / "digits.orbax"
    assert CONVERT.run(digits_pkl, "-o", orbax, "--format", "orbax").returncode == 0
    truth = ROOT / "golden" / "truths" / "digits.npz"
    return {"snapshot": digits_pkl, "checkpoint": digits_checkpoint, "orbax": orbax, "truth": truth}


def test_inspect(files):
    said = {name: json.loads(CONVERT.run("inspect", path, "--json").stdout) for name, path in files.items()}
    assert [found["kind"] for found in said.values()] == ["snapshot", "checkpoint", "checkpoint", "truth"]
    for name in "snapshot", "checkpoint", "orbax":
        assert said[name]["about"] == said["checkpoint"]["about"]
        assert said[name]["about"]["parameters"] == 722539
    assert said["truth"]["about"]["plan"]["batch"] == 2
    lines = CONVERT.run("inspect", files["checkpoint"]).stdout.splitlines()
    assert lines[0].split() == ["kind", "checkpoint"]
    assert f"digest                    {DIGEST}" in lines


def test_check(files, digits, tmp_path):
    for name, path in files.items():
        done = CONVERT.run("check", path)
        assert done.returncode == 0, done
        assert f"{path}: sound: a " in done.stdout
        assert name == "truth" or done.stdout.endswith(f" of 63 tensors, all finite, {DIGEST}\n")
    net, variables = digits
    spoilt = jax.tree.map(lambda leaf: leaf, variables)
    spoilt["params"]["unet"]["out_gain"] = np.float16(np.inf)
    jax_edm2.save(tmp_path / "bad.safetensors", net, spoilt)
    done = CONVERT.run("check", tmp_path / "bad.safetensors")
    assert (done.returncode, done.stdout.partition(": ")[2]) == (
        1,
        "values that are NaN or infinite: params/unet/out_gain (1)\n",
    )
    data = bytearray(files["checkpoint"].read_bytes())
    data[-9] ^= 1
    (tmp_path / "torn.safetensors").write_bytes(data)
    CONVERT.fails("check", tmp_path / "torn.safetensors", text="its tensors were altered")
    CONVERT.fails("inspect", tmp_path / "nothing", text="does not exist")


def test_several_sources(digits_pkl, digits_guide_pkl, tmp_path):
    done = CONVERT.run(digits_pkl, digits_guide_pkl, "-o", tmp_path)
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / name) for name in ("digits.safetensors", "digits-guide.safetensors")
    ]
    done = CONVERT.run(digits_pkl, digits_guide_pkl, "-o", tmp_path, "--force", "--json")
    assert len(json.loads(done.stdout)["conversions"]) == 2
    CONVERT.fails(digits_pkl, digits_guide_pkl, "-o", tmp_path / "x", text="is no folder: 2 checkpoints do not go into")
    CONVERT.fails(digits_pkl, digits_guide_pkl, "--sha256", "0" * 64, text="--sha256 is for one file")


def test_the_input_is_looked_at_before_the_output(digits_pkl, tmp_path):
    copy, there = tmp_path / "copy.pkl", tmp_path / "there.safetensors"
    copy.write_bytes(digits_pkl.read_bytes())
    there.write_bytes(b"")
    CONVERT.fails(tmp_path / "nothing.pkl", "-o", there, text="nothing.pkl")
    CONVERT.fails(copy, "-o", copy, "--force", text="is the file that is read: choose another --output")
    assert copy.read_bytes() == digits_pkl.read_bytes()
    CONVERT.fails(copy, "-o", there, text="exists; use --force to replace it")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals(monkeypatch, capfd, no_color):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    say("AGREES", style=GOOD)
    assert capfd.readouterr().out == ("AGREES\n" if no_color else "\x1b[32mAGREES\x1b[0m\n")


@pytest.mark.parametrize("name", ["convert", "phema", "sample", "verify"])
def test_help_and_spellings(name):
    tool = Tool(f"edm2-{name}", [])
    shown = tool.run("-h").stdout
    assert shown == tool.run("--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert not [word for word in shown.split() if word.startswith("--") and "_" in word]


def test_nvlabs_spelling_and_cuda(digits_checkpoint, tmp_path):
    arguments = (f"--net={digits_checkpoint}", f"--outdir={tmp_path}", "--S_churn=1", "--S_max=80", "--steps=1")
    sample = Tool("edm2-sample", [])
    assert sample.run(*arguments, "--sigma_max=70", "--seeds=1", "--device=cpu").returncode == 0
    sample.fails(*arguments, "--device=cuda", text="JAX finds no gpu here")


def test_presets_are_completed():
    words = {"COMP_WORDS": "edm2-convert --preset edm2-img512-xs", "COMP_CWORD": "2"}
    environment = {**os.environ, **words, "_EDM2_CONVERT_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT)}
    code = "from jax_edm2.converter.cli.entry import convert; convert()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "plain,edm2-img512-xs-fid" in done.stdout.splitlines()
