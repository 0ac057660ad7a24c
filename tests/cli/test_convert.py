"""edm2-convert as a user meets it: a process with arguments, output and an exit code."""

import json
import os
import shlex
import signal
import subprocess
import time

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner

import jax_edm2
from jax_edm2.converter import processes
from jax_edm2.converter.cli.convert import edm2_convert
from jax_edm2.converter.processes import ROOT
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.jax_edm2.test_parity import CONFIG
from tests.support.children import command
from tests.support.command_line import Tool
from tests.support.networks import network

COMMAND = processes.module("jax_edm2.converter.cli.convert")
TOOL = Tool("edm2-convert", COMMAND)
run, fails = TOOL.run, TOOL.fails
PATH = "params/unet/enc_8x8_block0/conv_res0/mpconv_weight"


def test_convert(digits_pkl, tmp_path):
    result = run(digits_pkl, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.startswith("digits.safetensors: 63 tensors, 0.7 M parameters, 1.4 MB, float16, sha256:")
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.safetensors"]
    record = jax_edm2.read_record(tmp_path / "digits.safetensors")
    sha256 = subprocess.run(["sha256sum", digits_pkl], capture_output=True, text=True, check=True).stdout.split()[0]
    assert record.source.sha256 == sha256
    assert record.license is None


def test_conversion_imports_neither_torch_nor_jax(digits_pkl, tmp_path):
    code = (
        "import sys; from jax_edm2.converter.cli.convert import edm2_convert;"
        f"edm2_convert([{str(digits_pkl)!r}, '-o', {str(tmp_path / 'x.safetensors')!r}], standalone_mode=False);"
        "loaded = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(loaded & {'torch', 'jax', 'jaxlib', 'flax', 'numpy', 'orbax', 'requests'}))"
    )
    result = subprocess.run(processes.python(code), capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[]", result


def test_dry_run_prints_and_writes_nothing(digits_pkl, tmp_path):
    result = run(digits_pkl, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert sum(line.startswith(("params/", "constants/")) for line in lines) == 63
    assert any(line.split() == [PATH, "32x32x3x3", "float16", "18,432"] for line in lines)
    assert '"kind": "StandardRGBEncoder"' in result.stdout
    assert lines[-1] == "63 tensors, 0.7 M parameters, 1.4 MB, 0.0215 Gflops for an image; nothing written"
    assert list(tmp_path.iterdir()) == []


def test_json(digits_pkl, tmp_path):
    for arguments in (["-o", tmp_path / "x.safetensors"], ["--dry-run"]):
        result = run(digits_pkl, "--json", *arguments)
        report = json.loads(result.stdout)
        assert len(report["tensors"]) == 63
        assert report["bytes"] == sum(tensor["bytes"] for tensor in report["tensors"].values())
        assert report["metadata"]["config"]["channel_mult"] == [1, 2]
        assert (report["metadata"]["digest"] is None) == (arguments == ["--dry-run"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype(digits_pkl, tmp_path, dtype):
    import ml_dtypes

    assert run(digits_pkl, "-o", tmp_path / "x.safetensors", "--dtype", dtype).returncode == 0
    assert run(digits_pkl, "-o", tmp_path / "keep.safetensors").returncode == 0
    kept, cast = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("keep", "x"))
    for name, value in kept.items():
        wanted = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        assert cast[name].dtype == wanted
        np.testing.assert_array_equal(cast[name], value.astype(wanted))
    assert jax_edm2.read_record(tmp_path / "x.safetensors").dtype == dtype


def test_not_finite_values_are_kept_and_said(tmp_path):
    net = network(CONFIG)
    net.unet.out_conv.weight.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    net.unet.out_gain.fill_(torch.nan)
    write_snapshot(tmp_path / "x.pkl", net)
    for format in ("safetensors", "orbax"):
        target = tmp_path / f"x.{format}"
        result = run(tmp_path / "x.pkl", "-o", target, "--json", "--format", format)
        assert result.returncode == 0
        assert result.stderr == (
            "edm2-convert: warning: x.pkl: 4 values are NaN or infinite, and are kept so: in "
            "unet.out_conv.weight (3); unet.out_gain (1); edm2-sample refuses such a network\n"
        )
        assert json.loads(result.stdout)["metadata"]["not_finite"] == 4
        assert jax_edm2.read_record(target).not_finite == 4
        _, variables = jax_edm2.load(target)
        weight = np.asarray(variables["params"]["unet"]["out_conv"]["mpconv_weight"])
        np.testing.assert_array_equal(weight.view(np.uint16), net.unet.out_conv.weight.half().numpy().view(np.uint16))
    assert run(tmp_path / "x.pkl", "-o", tmp_path / "y.safetensors", "--dtype", "float32").stderr.count("4 values") == 1


def test_what_no_record_can_hold(tmp_path):
    """What is converted can be loaded: an encoder whose class has a name of 15 million letters is not."""
    for change, text in (
        (lambda e: setattr(type(e), "__name__", "x" * 300), "its encoder is of class 'xxxx"),
        (
            lambda e: setattr(e, "vae_name", "x" * 300),
            "of itself: encoder.vae must be a text",
        ),
        (lambda e: setattr(e, "scale", np.array([np.nan] * 4)), "its encoder's scale is not finite"),
        (
            lambda e: setattr(e, "scale", np.zeros(4, np.float32)),
            "of itself: encoder.scale must be at most",
        ),
    ):
        encoder = type("StabilityVAEEncoder", (StabilityVAEEncoder,), {"__module__": StabilityVAEEncoder.__module__})()
        change(encoder)
        write_snapshot(tmp_path / "x.pkl", network(CONFIG), encoder=encoder)
        fails("x.pkl", text=text, cwd=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pkl"]


def test_overflow_is_refused(tmp_path):
    net = network(CONFIG)
    net.unet.out_gain.fill_(1e5)
    write_snapshot(tmp_path / "x.pkl", net, dtype=net.unet.out_gain.dtype)
    fails(tmp_path / "x.pkl", "-o", tmp_path / "x.safetensors", "--dtype", "float16", text="unet.out_gain has values")
    assert run(tmp_path / "x.pkl", "-o", tmp_path / "x.safetensors", "--dtype", "bfloat16").returncode == 0


def test_orbax(digits_pkl, tmp_path):
    result = run(digits_pkl, "--format", "orbax", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.orbax"]
    assert jax_edm2.load(tmp_path / "digits.orbax")[0].config.img_resolution == 8


def test_errors_are_one_line_and_leave_nothing(digits_pkl, tmp_path):
    fails(tmp_path / "absent.pkl", text="there is no such file", cwd=tmp_path)
    fails(tmp_path, text="is no orbax checkpoint of this project", cwd=tmp_path)
    fails(text="give a SOURCE", cwd=tmp_path)
    fails(digits_pkl, "--dtype", "int8", text="'int8' is not one of", cwd=tmp_path)
    fails(digits_pkl, "--no-such-option", text="No such option", cwd=tmp_path)
    fails(digits_pkl, "-o", tmp_path / "no" / "x.safetensors", text="does not exist", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    copy = tmp_path / "copy.pkl"
    copy.write_bytes(digits_pkl.read_bytes())
    fails(copy, "-o", copy, "--force", text="is the file that is read", cwd=tmp_path)
    target = tmp_path / "x.safetensors"
    target.write_text("precious")
    fails(copy, "-o", target, text="exists; use --force to replace it", cwd=tmp_path)
    assert target.read_text() == "precious"
    assert copy.read_bytes() == digits_pkl.read_bytes()
    assert run(copy, "-o", target, "--force").returncode == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy.pkl", "x.safetensors"]
    jax_edm2.read_record(target)


def test_a_full_disk_is_one_line_and_leaves_nothing(digits_pkl, tmp_path):
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "from jax_edm2.converter.cli.convert import main; main()"
    )
    command = [*processes.python(code), str(digits_pkl), "-o", str(tmp_path / "x.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert result.returncode == 2
    assert result.stderr == f"edm2-convert: {tmp_path / 'x.safetensors'}: File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_disk_that_is_really_full(digits_pkl, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        for format in ("safetensors", "orbax"):
            target = tmp_path / f"x.{format}"
            fails(digits_pkl, "-o", target, "--format", format, text="needs 1.4 MB, and there are 1.0 MB free")
            assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(tmp_path, number, code):
    net = network({**CONFIG, "model_channels": 256, "num_blocks": 3, "channels_per_head": 64})
    write_snapshot(tmp_path / "x.pkl", net)
    environment = {**os.environ, "PYTHONPATH": ROOT}
    arguments = [str(tmp_path / "x.pkl"), "-o", str(tmp_path / "x.safetensors"), "--dtype", "float32"]
    process = subprocess.Popen(
        [*command("jax_edm2.converter.cli.convert"), *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    while process.poll() is None and len(list(tmp_path.iterdir())) < 2:  # until the temporary file appears
        time.sleep(0.001)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == code
    assert stderr.strip() == ("edm2-convert: interrupted" if number == signal.SIGINT else "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.parametrize("name", ["a\nb.pkl", "a\udcff.pkl", "a\x1b[31m.pkl"])
def test_odd_file_names_stay_on_one_line(tmp_path, name):
    fails(name, text="there is no such file", cwd=tmp_path)


def test_help_documents_every_option():
    result = CliRunner().invoke(edm2_convert, ["--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert "Exit codes: 0 done" in result.output
    for parameter in edm2_convert.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name


def test_a_closed_pipe_is_no_error(digits_pkl):
    command = f"{shlex.join(COMMAND)} {digits_pkl} --dry-run | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert result.stderr == ""


def test_a_file_with_the_name_of_a_command(digits_pkl, tmp_path):
    """`cache` is a command where it comes first; ./cache is a file, and so is what follows an option or --."""
    (tmp_path / "cache").write_bytes(digits_pkl.read_bytes())
    for arguments in (["./cache"], ["--dry-run", "--", "cache"], ["--dry-run", "cache"]):
        result = run(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "63 tensors" in result.stdout
    result = run("cache", "list", "--cache-dir", tmp_path / "none", cwd=tmp_path)
    assert result.stdout == f"{tmp_path / 'none'}: 0 files, 0.0 MB\n"
    assert run("cache", "list", "--help").stdout.startswith("Usage: edm2-convert cache list [OPTIONS]\n")
    assert "edm2-convert cache list|verify|clear" in run("--help").stdout
    fails("cache", "lists", text="No such command 'lists'", cwd=tmp_path)
