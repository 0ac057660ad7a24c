"""edm2-verify as a user meets it: a process with arguments, reports and an exit code."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

import jax_edm2
from jax_edm2.converter import processes
from jax_edm2.converter.convert import convert
from jax_edm2.converter.opening import open_network, open_weights
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.report.text import SCHEMA
from jax_edm2.torch_ref import network as torch_ref_network
from jax_edm2.torch_ref import snapshot as torch_ref_snapshot
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support import children
from tests.support.command_line import Tool
from tests.support.networks import network
from tests.support.states import TINY, Trained

COMMAND = processes.module("jax_edm2.converter.cli.verify")
TOOL = Tool("edm2-verify", COMMAND)
run, fails = TOOL.run, TOOL.fails
QUICK = ("--checks", "parameters,forward", "--device", "cpu")
QUICKER = ("--checks", "parameters", "--device", "cpu")
CONFIG = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 5,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 0,
    "attn_resolutions": [],
    "channels_per_head": 8,
}
PATH = "params/unet/dec_8x8_in1/conv_res0/mpconv_weight"


@pytest.fixture(scope="module")
def small_pkl(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "small.pkl"
    write_snapshot(path, network(CONFIG, 2))
    return path


@pytest.fixture(scope="module")
def small_checkpoint(small_pkl):
    path = small_pkl.with_suffix(".safetensors")
    with read_snapshot(small_pkl) as snapshot:
        convert(snapshot, path)
    return path


@pytest.fixture(scope="module")
def report(small_pkl, small_checkpoint, tmp_path_factory):
    """(process, folder) of a run with every check and report."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    arguments = ("--checkpoint", small_checkpoint, "--steps", 4, "--device", "cpu", "--report", folder)
    return run(small_pkl, *arguments), folder


def test_a_network_agrees(report):
    """`make readme` runs the digits."""
    result, folder = report
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "AGREES: JAX computes what PyTorch computes." in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100 + len(str(folder))
    assert sorted(entry.name for entry in folder.iterdir()) == ["report.html", "report.json", "report.md"]


def test_report_json_is_as_documented(report, small_pkl):
    record = json.loads((report[1] / "report.json").read_text())
    assert record["schema"] == SCHEMA
    assert (record["verdict"], record["exit_code"], record["reasons"], record["guilty"]) == ("agrees", 0, [], [])
    sizes = [tensor.numel() for tensor in network(CONFIG).state_dict().values()]
    assert record["parameters"] == {"count": len(sizes), "values": sum(sizes), "different": []}
    assert list(record["checks"]) == ["forward", "gradients", "parameters", "trajectory"]
    assert {m["kind"] for m in record["measurements"]["forward"]} == {"isolated", "accumulated", "compiled", "folded"}
    assert all(m["agrees"] and m["error"] <= m["limit"] for found in record["measurements"].values() for m in found)
    assert len(record["trajectory"]["error"]) == len(record["trajectory"]["sigmas"]) == 5
    assert record["trajectory"]["psnr"] > 100
    names = {m["name"] for m in record["measurements"]["gradients"]}
    assert {"loss", "input", "unet.out_gain", "step/unet.out_gain", "ema/unet.out_gain"} <= names
    assert record["snapshot"]["sha256"] == hashlib.sha256(small_pkl.read_bytes()).hexdigest()
    assert record["switches"]["JAX"]["problem"] is record["switches"]["PyTorch"]["problem"] is None


def test_report_md(report):
    text = (report[1] / "report.md").read_text()
    assert text.startswith("### edm2-verify: agrees\n")
    assert f"| parameters | agrees | {len(network(CONFIG).state_dict())} tensors" in text


def test_a_fault_in_a_checkpoint_is_exit_code_1(small_pkl, small_checkpoint, tmp_path):
    net, variables = jax_edm2.load(small_checkpoint)
    leaves = flatten_dict(variables, sep="/")
    leaves[PATH] = leaves[PATH].swapaxes(2, 3)
    bad = tmp_path / "bad.safetensors"
    jax_edm2.save(bad, net, unflatten_dict(leaves, sep="/"), record=jax_edm2.read_record(small_checkpoint))
    result = run(small_pkl, "--checkpoint", bad, *QUICK, "--json")
    assert result.returncode == 1, result.stderr
    record = json.loads(result.stdout)
    assert record["verdict"] == "disagrees"
    assert [(g["scope"], g["operation"]) for g in record["guilty"]] == [("unet.dec.8x8_in1", "conv_res0")]
    assert "conv_res0.weight differs in" in record["reasons"][0]
    marked = [row["scope"] for row in record["tree"] if row["guilty"]]
    assert marked == ["unet.dec.8x8_in1"]


def test_another_configuration_in_a_checkpoint(small_pkl, small_checkpoint, tmp_path):
    net, variables = jax_edm2.load(small_checkpoint)
    bad = tmp_path / "bad.safetensors"
    jax_edm2.save(bad, net.clone(config=dataclasses.replace(net.config, res_balance=0.31)), variables)
    result = run(small_pkl, "--checkpoint", bad, *QUICK, "--json")
    record = json.loads(result.stdout)
    assert result.returncode == 1
    assert "res_balance is 0.31, should be 0.3" in record["reasons"][0]
    assert (record["guilty"][0]["scope"], record["guilty"][0]["operation"]) == ("unet.dec.8x8_in0", "res_sum")


def test_two_machines(small_pkl, small_checkpoint, tmp_path):
    """A truth made where torch is serves where it is not, with a checkpoint or the snapshot."""
    truth = tmp_path / "truth.npz"
    result = run(small_pkl, "--save-truth", truth, "--steps", 3, "--checks", "parameters,forward,trajectory")
    assert result.returncode == 0, result.stderr
    assert "use it with --truth" in result.stdout
    no_torch = tmp_path / "no_torch"
    no_torch.mkdir()
    (no_torch / "torch.py").write_text("raise ImportError('there is no torch here')")
    env = {"PYTHONPATH": f"{no_torch}{os.pathsep}{ROOT}"}
    result = run("--checkpoint", small_checkpoint, "--truth", truth, "--device", "cpu", "--json", env=env)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["verdict"] == "agrees"
    assert set(record["checks"]) == {"parameters", "forward", "trajectory"}
    fails(small_pkl, "--truth", truth, "--seeds", "3", text="--seeds is fixed by the --truth file")
    fails(small_pkl, "--save-truth", truth, text="exists; use --force")
    short = tmp_path / "short.npz"
    short.write_bytes(truth.read_bytes()[:10_000])
    fails(small_pkl, "--truth", short, text="short.npz: is no zip archive, or cut short; make it again")


def test_truth_of_another_network(small_pkl, digits_pkl, tmp_path):
    truth = tmp_path / "truth.npz"
    assert run(small_pkl, "--save-truth", truth, "--checks", "parameters").returncode == 0
    fails(digits_pkl, "--truth", truth, text="is of another network than")


def test_embedded_reference(small_pkl):
    result = run(small_pkl, *QUICK, "--reference", "embedded", "--trust-embedded-code", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["reference"] == "embedded"
    assert record["snapshot"]["source"].removeprefix("sha256:") in result.stderr  # shown before it is executed


def embedding(path, edit):
    """Write the small network with another source inside."""
    source = torch_ref_snapshot.source_of
    original = source(torch_ref_network)
    try:
        torch_ref_snapshot.source_of = lambda module: edit(original) if module is torch_ref_network else source(module)
        write_snapshot(path, network(CONFIG, 2))
    finally:
        torch_ref_snapshot.source_of = source


def test_embedded_code_is_never_executed_without_trust(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "marked.pkl"
    embedding(path, lambda source: source + f"\nopen({str(marker)!r}, 'w').close()\n")
    assert run(path, *QUICKER).returncode == 0
    fails(path, "--reference", "embedded", text="executes the Python source inside the snapshot")
    fails(path, "--trust-embedded-code", "--checks", "nothing", text="'nothing' is none of")
    assert not marker.exists()
    assert run(path, *QUICK, "--reference", "embedded", "--trust-embedded-code").returncode == 0
    assert marker.exists()


def test_a_reference_that_is_not_repeatable_is_inconclusive(tmp_path):
    path = tmp_path / "noisy.pkl"
    embedding(
        path,
        lambda source: source.replace(
            "return F.silu(x) / 0.596", "return F.silu(x) / 0.596 * (1 + 1e-4 * torch.randn([]))"
        ),
    )
    result = run(path, *QUICK, "--reference", "embedded", "--trust-embedded-code", "--json")
    assert result.returncode == 3, result.stderr
    assert any("not repeatable" in reason for reason in json.loads(result.stdout)["reasons"])


def test_embedded_code_that_fails(tmp_path):
    path = tmp_path / "broken.pkl"
    embedding(path, lambda source: source + "\nraise RuntimeError('no')\n")
    result = run(path, *QUICKER, "--reference", "embedded", "--trust-embedded-code")
    assert result.returncode == 2
    assert "the source embedded in the snapshot cannot be run (RuntimeError('no'))" in result.stderr
    assert "Traceback" not in result.stderr


def test_nan_in_the_reference_is_inconclusive(tmp_path):
    net = network(CONFIG, 2)
    with torch.no_grad():
        net.unet.dec["8x8_in1"].conv_res1.weight[0, 0, 0, 0] = float("nan")
    write_snapshot(tmp_path / "nan.pkl", net)
    result = run(tmp_path / "nan.pkl", *QUICK, "--json")
    assert result.returncode == 3, result.stderr
    record = json.loads(result.stdout)
    assert record["parameters"]["different"] == []
    assert "the truth is not finite at seed0/unet.dec.8x8_in1/conv_res1" in record["reasons"][0]


def test_tf32_where_there_is_none_is_inconclusive(small_pkl):
    result = run(small_pkl, *QUICK, "--precision", "tf32")
    assert result.returncode == 3, result.stderr
    assert "TF32 is not in effect" in result.stdout


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_a_health_check(small_pkl, precision):
    result = run(small_pkl, *QUICK, "--precision", precision, "--json")
    record = json.loads(result.stdout)
    assert result.returncode == 0, record["reasons"]
    assert any("health check" in warning for warning in record["warnings"])
    half = [m for m in record["measurements"]["forward"] if m["name"].endswith("conv_res0")]
    assert min(m["error"] for m in half) > 1e-5  # it was not computed in float32


def test_usage_errors(digits_pkl, digits_checkpoint, tmp_path):
    fails(text="give a SNAPSHOT")
    fails(tmp_path / "none.pkl", text="none.pkl: there is no such file")
    fails(
        digits_checkpoint, "--reference", "embedded", "--trust-embedded-code", text="carries no source of its network"
    )
    fails(
        digits_pkl, "--weights", "net", "--config-from", digits_pkl, text="are for training states, and there is none"
    )
    fails(digits_checkpoint, "--show-source", text="is a safetensors file, converted already")
    fails(
        digits_pkl,
        "--checkpoint",
        tmp_path / "none.safetensors",
        "--checks",
        "parameters",
        text="there is no such file",
    )
    fails(digits_pkl, "--seeds", "3-1", text="is no list of seeds")
    fails(digits_pkl, "--sigmas", "0,1", text="is no list of noise levels above 0")
    fails(digits_pkl, "--save-truth", tmp_path / "x.npz", "--checks", "throughput", text="nothing to keep")
    fails(digits_pkl, "--save-truth", tmp_path / "x.npz", "--seeds", "0-999", text="ask for fewer --seeds")
    fails(digits_pkl, "--batch", "0", text="0 is not in the range")
    fails(digits_pkl, "--device", "gpu", text="JAX finds no gpu here")
    fails(digits_pkl, "--checks", "all", "--truth", tmp_path / "none.npz", text="--checks is fixed by the --truth file")
    fails(digits_pkl, "--truth", tmp_path / "none.npz", text="none.npz: there is no such file")
    fails(digits_pkl, "--report", digits_pkl / "x", text="Not a directory")


def test_every_kind_of_file_on_either_side(tmp_path):
    """A snapshot, a training state as .pt, as a folder, and both kinds of checkpoint, all with the same weights."""
    state = Trained().steps(2).save(tmp_path / "training-state-0000002.pt")
    write_snapshot(tmp_path / "config.pkl", network(TINY))
    of_state = ("--weights", "ema-0.100", "--config-from", tmp_path / "config.pkl")
    kinds = {"pt": state, "state": tmp_path / "state", **{k: tmp_path / f"net.{k}" for k in ("safetensors", "pkl")}}
    kinds["orbax"] = tmp_path / "net"
    with open_weights(state, config_from=str(tmp_path / "config.pkl")) as weights:
        convert(weights, kinds["state"], format="orbax")
    for form in ("safetensors", "pkl", "orbax"):
        with open_network(kinds["state"], "ema-0.100") as weights:
            convert(weights, kinds[form], format=form)
    for one, other in (("pt", "state"), ("safetensors", "pt"), ("orbax", "pkl"), ("pkl", "safetensors")):
        checks = "parameters,forward" if one == "pt" else "parameters"
        choice = of_state if "pt" in (one, other) else ()
        done = run(kinds[one], "--checkpoint", kinds[other], "--checks", checks, "--batch", "2", *choice)
        assert (done.returncode, done.stderr) == (0, ""), (one, other, done)
        assert "all equal" in done.stdout or "are equal" in done.stdout
    other = ("--weights", "ema-0.050", *of_state[2:])
    assert run(state, "--checkpoint", kinds["safetensors"], "--checks", "parameters", *other).returncode == 1
    fails(state, "--config-from", tmp_path / "config.pkl", text="with --weights net|ema-0.050|ema-0.100")
    truth = tmp_path / "truth.npz"
    assert run(state, "--save-truth", truth, "--checks", "parameters", *of_state).returncode == 0
    assert run("--truth", truth, "--checkpoint", kinds["state"], "--weights", "ema-0.100").returncode == 0
    assert run("--truth", truth, "--checkpoint", kinds["state"], "--weights", "net").returncode == 1


def test_training_goes_on_from_one_state(tmp_path):
    """The whole state, parameters, moments and averages, of a .pt and of what was made of it; and one moment is off."""
    state = Trained().steps(2).save(tmp_path / "training-state-0000002.pt")
    write_snapshot(tmp_path / "config.pkl", network(TINY))
    truth, checks = tmp_path / "truth.npz", ("--checks", "training", "--updates", "2")
    of_net = ("--weights", "net")
    done = run(state, "--save-truth", truth, *checks, *of_net, "--config-from", tmp_path / "config.pkl")
    assert (done.returncode, done.stderr) == (0, ""), done
    with open_weights(state, config_from=str(tmp_path / "config.pkl")) as weights:
        convert(weights, tmp_path / "state", format="orbax")
    done = run("--truth", truth, "--checkpoint", tmp_path / "state", *of_net, "--json")
    assert done.returncode == 0, done
    record = json.loads(done.stdout)
    assert record["headline"].endswith("checked: training; not checked: parameters, forward, gradients, trajectory")
    found = {m["name"]: m for m in record["measurements"]["training"]}
    assert len(found) == 4 + 5 * sum(name.startswith("nu/") for name in found)
    assert max(m["error"] for m in found.values()) < 2e-5  # measured: 2e-6
    stored = jax_edm2.load_training_state(tmp_path / "state")
    layer = stored.mu["unet"]["enc_4x4_down"]["conv_res0"]
    layer["mpconv_weight"] = layer["mpconv_weight"] * 1.001
    jax_edm2.save_training_state(tmp_path / "other", stored)
    done = run("--truth", truth, "--checkpoint", tmp_path / "other", *of_net, "--json")
    assert done.returncode == 1, done
    failed = [m["name"] for m in json.loads(done.stdout)["measurements"]["training"] if not m["agrees"]]
    assert "mu/unet.enc.4x4_down.conv_res0.weight" in failed
    average = ("--truth", truth, "--checkpoint", tmp_path / "state", "--weights", "ema-0.100")
    fails(*average, text="its training goes on from a training state: give that, with --weights net")


def test_what_is_assumed_of_a_network_is_said(tmp_path):
    """Both sides assume it alike: a verdict is no evidence for it."""
    wide = {key: value for key, value in TINY.items() if key != "channels_per_head"} | {"model_channels": 64}
    state = Trained({**wide, "channel_mult": [1], "attn_resolutions": []}).steps(1).save(tmp_path / "state.pt")
    done = run(state, "--weights", "net", "--checks", "parameters", "--report", tmp_path / "report")
    assert done.returncode == 0, done
    assert done.stderr.startswith(f"edm2-verify: warning: {state}: does not say how its network was constructed.")
    assert done.stderr.count("\n") == 1
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "channels_per_head=64" in record["snapshot"]["assumed"]
    assert record["snapshot"]["weights"] == "net"
    assert "channels_per_head=64" in (tmp_path / "report" / "report.html").read_text()


def test_throughput_alone_claims_no_agreement(small_pkl, monkeypatch):
    from click.testing import CliRunner

    from jax_edm2.converter.cli.verify import edm2_verify
    from jax_edm2.converter.verify.throughput import measure as throughput

    monkeypatch.setattr(throughput, "WAYS", {"jax": ("JAX as loaded",)})
    arguments = [str(small_pkl), "--checks", "throughput", "--device", "cpu"]
    result = CliRunner().invoke(edm2_verify, arguments, standalone_mode=False)
    assert result.return_value == 0, result
    assert "MEASURED: speed was measured, agreement was not." in result.stdout
    assert "agree" not in result.stdout.replace("agreement was not", "")
    assert "JAX as loaded" in result.stdout


def test_interrupted(digits_pkl, tmp_path):
    """Ctrl-C, which the terminal sends to both processes, while PyTorch computes and JAX compiles."""
    command = [*children.command("jax_edm2.converter.cli.verify"), str(digits_pkl), *QUICK]
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("edm2-verify-*/truth.npz")):  # the oracle has begun
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert errors.strip() == "edm2-verify: interrupted"
    assert not list(tmp_path.glob("edm2-verify-*"))


def test_help_is_complete():
    text = run("--help").stdout
    assert "Examples:" in text
    assert "Exit codes: 0 the networks agree" in text
    for option in ("--checkpoint", "--device", "--precision", "--checks", "--truth", "--save-truth", "--report"):
        assert option in text
