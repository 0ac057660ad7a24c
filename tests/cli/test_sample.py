"""edm2-sample as a user meets it: a process with arguments, pictures and an exit code."""

import dataclasses
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import jax_edm2
from jax_edm2.config import EDM2Config
from jax_edm2.converter.processes import ROOT
from jax_edm2.generation import Draw
from jax_edm2.golden.digits import CONFIG as DIGITS
from jax_edm2.golden.digits import load_network
from jax_edm2.record import Sampler
from jax_edm2.settings import Settings
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder, StandardRGBEncoder
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.snapshot import randomize, write_snapshot
from tests.jax_edm2.test_vae import SMALL, torch_vae
from tests.support.children import command
from tests.support.command_line import Tool
from tests.support.samples import with_torch
from tests.support.server import Server, serve

COMMAND = command("jax_edm2.converter.cli.sample")
TOOL = Tool("edm2-sample", COMMAND)
start, run, fails = TOOL.start, TOOL.run, TOOL.fails
QUICK = ("--steps=2", "--device=cpu")
LATENT = {
    "img_resolution": 8, "img_channels": 4, "label_dim": 5, "model_channels": 8, "channel_mult": [1], "num_blocks": 0,
    "attn_resolutions": [], "channels_per_head": 8,
}  # fmt: skip


def pictures(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def latent_pkl(tmp_path_factory):
    path = tmp_path_factory.mktemp("latent") / "latent.pkl"
    return write_snapshot(path, randomize(Precond(**LATENT), 0).eval(), encoder=StabilityVAEEncoder()) or path


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    torch_vae(**SMALL).save_pretrained(folder)
    return folder


def test_pictures_are_those_of_torch_ref(digits_pkl, digits_guide_pkl, tmp_path):
    """From the snapshot and its guide, by seed, with a note of how they were made."""
    arguments = (f"--net={digits_pkl}", f"--gnet={digits_guide_pkl}", "--guidance=1.5", f"--outdir={tmp_path}")
    result = run(*arguments, "--seeds=3,0-1", "--rng=torch-cpu", "--device=cpu", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["written"], report["skipped"], report["precision"]) == (3, 0, "float32")
    assert list(pictures(tmp_path)) == ["000000.png", "000001.png", "000003.png"]
    draw = Draw.of(EDM2Config(**DIGITS), (0, 1, 3), rng="torch-cpu")
    theirs = with_torch(load_network(digits_pkl), load_network(digits_guide_pkl), draw, Settings(guidance=1.5))
    theirs = StandardRGBEncoder().decode(torch.from_numpy(theirs))
    for i, seed in enumerate((0, 1, 3)):
        with Image.open(tmp_path / f"{seed:06d}.png") as image:
            assert image.mode == "L"
            assert np.abs(np.asarray(image, int) - theirs[i, 0].numpy()).max() <= 1
            assert (image.text["seed"], image.text["class"]) == (str(seed), str(draw.classes[i]))
            about = json.loads(image.text["edm2"], parse_constant=pytest.fail)
    assert about["network"]["digest"].startswith("sha256:a9b20029022a")
    assert about["guide"]["name"] == "digits-guide.pkl"
    assert about["settings"]["guidance"] == 1.5
    assert about == {name: value for name, value in report.items() if name in about}


def test_a_checkpoint_and_its_snapshot_give_the_same(tiny_pkl, tiny_checkpoint, tmp_path):
    for name, net in (("a", tiny_pkl), ("b", tiny_checkpoint)):
        result = run(
            f"--net={net}", f"--outdir={tmp_path / name}", "--seeds=999-1001", "--class=7", "--subdirs", *QUICK
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"{tmp_path / name}: 3 pictures, ")
    assert list(pictures(tmp_path / "a")) == ["000000/000999.png", "001000/001000.png", "001000/001001.png"]
    for name in pictures(tmp_path / "a"):
        images = [Image.open(tmp_path / folder / name) for folder in "ab"]
        assert np.array_equal(*map(np.asarray, images))
        assert images[0].text["class"] == "7"


def test_a_guided_checkpoint_knows_its_guide(tiny_checkpoint, tiny_guide_checkpoint, tmp_path):
    """As edm2-convert leaves it for a guided preset."""
    (tmp_path / "guide.safetensors").write_bytes(tiny_guide_checkpoint.read_bytes())
    net, variables = jax_edm2.load(tiny_checkpoint)
    record = jax_edm2.read_record(tiny_checkpoint)
    record = dataclasses.replace(record, sampler=Sampler(guidance=1.9, guide="guide.safetensors"))
    jax_edm2.save(tmp_path / "net.safetensors", net, variables, record=record)
    arguments = (f"--net={tmp_path / 'net.safetensors'}", f"--outdir={tmp_path}", "--seeds=1", "--json", *QUICK)
    about = json.loads(run(*arguments).stdout)
    assert (about["guide"]["name"], about["settings"]["guidance"]) == ("guide.safetensors", 1.9)
    assert json.loads(run(*arguments, "--guidance=1").stdout)["guide"] is None
    (tmp_path / "guide.safetensors").unlink()
    fails(*arguments, text="guide.safetensors: there is no such file or folder")
    (tmp_path / "net.safetensors").unlink()
    record = dataclasses.replace(record, sampler=Sampler(guidance=1.9, guide="../guide.safetensors"))
    jax_edm2.save(tmp_path / "net.safetensors", net, variables, record=record)
    fails(*arguments, text="its record names a guide '../guide.safetensors', which is no file name")


def test_guidance_of_zero_is_the_guide(tiny_checkpoint, tiny_guide_checkpoint, tmp_path):
    guided = (f"--net={tiny_checkpoint}", f"--gnet={tiny_guide_checkpoint}", "--guidance=0")
    assert run(*guided, f"--outdir={tmp_path / 'a'}", *QUICK).returncode == 0
    assert run(f"--net={tiny_guide_checkpoint}", f"--outdir={tmp_path / 'b'}", *QUICK).returncode == 0
    for name in pictures(tmp_path / "a"):
        assert np.array_equal(*(np.asarray(Image.open(tmp_path / folder / name)) for folder in "ab"))


def test_an_orbax_checkpoint(tiny_network, tiny_checkpoint, tmp_path):
    """Whose metadata take JAX to be read: the device is chosen before that."""
    record = jax_edm2.read_record(tiny_checkpoint)
    jax_edm2.save(tmp_path / "net", *tiny_network, record=record)
    arguments = (f"--net={tmp_path / 'net'}", f"--outdir={tmp_path / 'a'}", "--seeds=1", "--steps=2")
    fails(*arguments, "--device=gpu", text="JAX finds no gpu here")
    fails(*arguments, f"--sha256={'0' * 64}", text="is a folder, which has no sha256")
    assert run(*arguments, "--device=cpu").returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = (f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--num-processes=1", "--process-id=0")
    assert run(*arguments, "--device=cpu", *cluster, f"--outdir={tmp_path / 'b'}").returncode == 0
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_latents_and_their_vae(latent_pkl, vae_folder, tmp_path):
    """Arrays without the VAE; pictures with it, from a folder and by URL; the two fit."""
    result = run(f"--net={latent_pkl}", f"--outdir={tmp_path / 'arrays'}", "--latents", *QUICK)
    assert result.returncode == 0, result.stderr
    latents = np.stack([np.load(path) for path in sorted((tmp_path / "arrays").iterdir())])
    assert (latents.shape, latents.dtype) == ((4, 4, 8, 8), np.float32)
    encoder = StabilityVAEEncoder()
    encoder._vae = torch_vae(**SMALL)
    theirs = encoder.decode(torch.from_numpy(latents)).numpy()
    result = run(f"--net={latent_pkl}", f"--outdir={tmp_path / 'a'}", f"--vae={vae_folder}", "--vae-batch=3", *QUICK)
    assert result.returncode == 0, result.stderr
    for i, seed in enumerate(range(16, 20)):
        with Image.open(tmp_path / "a" / f"{seed:06d}.png") as image:
            assert np.abs(np.asarray(image, int).transpose(2, 0, 1) - theirs[i]).max() <= 1

    def answer(handler, number):
        serve(handler, data=(vae_folder / handler.path.rpartition("/")[2]).read_bytes())

    arguments = (f"--net={latent_pkl}", f"--outdir={tmp_path / 'b'}", f"--cache-dir={tmp_path / 'cache'}", *QUICK)
    with Server(b"", answer) as server:
        result = run(*arguments, f"--vae={server.url('vae/')}")
        assert result.returncode == 0, result.stderr
        assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
        fetched = len(server.requests)
        assert run(*arguments, f"--vae={server.url('vae/')}", "--offline").returncode == 0
        assert len(server.requests) == fetched
    fails(*arguments, "--offline", text="huggingface.co/stabilityai/sd-vae-ft-mse/resolve/main/config.json: is not in")
    fails(*arguments, f"--vae={latent_pkl}", text="is no safetensors file")
    fails(*arguments, "--vae=nowhere", text="nowhere: there is no such file")


def test_rounding_needs_float16(tiny_network, tiny_checkpoint, tmp_path):
    net, variables = tiny_network
    variables = jax.tree.map(lambda leaf: leaf.astype("float32"), variables)
    jax_edm2.save(tmp_path / "net.safetensors", net, variables)
    arguments = (f"--outdir={tmp_path / 'out'}", "--nvlabs-rounding", *QUICK)
    fails(
        f"--net={tmp_path / 'net.safetensors'}", *arguments, text="is stored in float32, and --nvlabs-rounding is for"
    )


def test_nobody_listens(tiny_checkpoint, tmp_path):
    """A closed standard error is no reason to stop."""
    arguments = [*COMMAND, f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--seeds=1", *QUICK]
    script = shlex.join(arguments) + " 2>&-"
    assert subprocess.run(["sh", "-c", script], env={**os.environ, "PYTHONPATH": ROOT}).returncode == 0
    assert list(pictures(tmp_path)) == ["000001.png"]


def test_skipping_and_the_grid(tiny_checkpoint, tmp_path):
    arguments = (f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--grid", *QUICK)
    assert run(*arguments, "--seeds=0-2").returncode == 0
    before = (tmp_path / "000001.png").stat().st_mtime_ns
    result = run(*arguments, "--seeds=0-4", "--skip-existing")
    assert result.stdout.startswith(f"{tmp_path}: 2 pictures, 3 there already, ")
    assert (tmp_path / "000001.png").stat().st_mtime_ns == before
    with Image.open(tmp_path / "grid.png") as sheet, Image.open(tmp_path / "000004.png") as last:
        assert sheet.size == (3 * 50 + 2, 2 * 50 + 2)
        tile = np.asarray(sheet)[52:100, 52:100]
        assert np.array_equal(tile, np.asarray(last).repeat(6, 0).repeat(6, 1))
    assert run(*arguments, "--seeds=0-4", "--skip-existing").stdout.startswith(f"{tmp_path}: 0 pictures, 5 there")


def test_what_is_torn_or_of_another_seed_is_made_again(tiny_checkpoint, tmp_path):
    arguments = (f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--seeds=0-7", "--skip-existing", *QUICK)
    assert run(*arguments).returncode == 0
    whole = pictures(tmp_path)
    for seed, data in enumerate((
        b"",
        whole["000001.png"][:-1],
        whole["000002.png"][:200],
        whole["000003.png"].replace(b"IDAT", b"IDAU"),
        whole["000003.png"],  # of seed 3
        whole["000005.png"][:-20] + bytes([whole["000005.png"][-20] ^ 1]) + whole["000005.png"][-19:],
        b"no picture",
    )):  # fmt: skip
        (tmp_path / f"{seed:06d}.png").write_bytes(data)
    result = run(*arguments)
    assert result.stdout.startswith(f"{tmp_path}: 7 pictures, 1 there already, "), result
    assert pictures(tmp_path) == whole
    assert result.stderr == ""


def test_other_settings_do_not_mix(tiny_checkpoint, tmp_path):
    """Those that a picture was made with stand in it."""
    arguments = (f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--skip-existing", *QUICK)
    assert run(*arguments, "--seeds=0-2").returncode == 0
    (tmp_path / "000007.png").write_bytes((tmp_path / "000001.png").read_bytes())  # of another seed
    before = pictures(tmp_path)
    other = (*arguments, "--steps=3", "--class=1", "--seeds=0-3")
    fails(*other, text="000000.png and 2 more were made otherwise: num_steps 2, not 3; class_idx None, not 1; choose")
    fails(
        *arguments, "--precision=bfloat16", "--seeds=2", text="000002.png was made otherwise: precision 'float32', not"
    )
    assert pictures(tmp_path) == before
    assert run(*other, "--force").stdout.startswith(f"{tmp_path}: 4 pictures, ")
    assert run(*other).stdout.startswith(f"{tmp_path}: 0 pictures, 4 there already, ")
    fails(*arguments[:2], *QUICK, "--force", text="--force goes with --skip-existing")
    Image.new("L", (8, 8)).save(tmp_path / "000009.png")
    fails(*arguments, "--seeds=9", text="000009.png was made otherwise: it does not say how; choose another --outdir")


def test_latents_do_not_say_how_they_were_made(tiny_checkpoint, tmp_path):
    arguments = (f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--skip-existing", "--latents", *QUICK)
    assert run(*arguments, "--seeds=0-1").stderr == ""
    warned = run(*arguments, "--seeds=0-2", "--steps=3")
    assert warned.stderr == "edm2-sample: warning: 2 arrays are left, which do not say how they were made\n"


def test_networks_that_are_not_finite(tiny_network, tiny_checkpoint, tmp_path):
    """Black pictures, they gave, and exit code 0."""
    net, variables = tiny_network
    record = jax_edm2.read_record(tiny_checkpoint)
    spoilt = jax.tree.map(lambda leaf: leaf, variables)
    spoilt["params"]["unet"]["out_gain"] = np.float16(np.inf)
    jax_edm2.save(tmp_path / "bad.safetensors", net, spoilt, record=record)
    out = f"--outdir={tmp_path / 'out'}"
    says = "bad.safetensors: has values that are NaN or infinite, in params/unet/out_gain (1)"
    fails(f"--net={tmp_path / 'bad.safetensors'}", out, *QUICK, text=says)
    guided = (f"--net={tiny_checkpoint}", f"--gnet={tmp_path / 'bad.safetensors'}", "--guidance=2")
    fails(*guided, out, *QUICK, text=says)
    # Weights that are finite, and values that are not
    huge = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    huge["params"]["unet"]["out_gain"] = np.float32(3e38)
    jax_edm2.save(tmp_path / "huge.safetensors", net, huge, record=record)
    result = run(f"--net={tmp_path / 'huge.safetensors'}", out, *QUICK)
    assert result.returncode == 2
    assert "the network gives values that are NaN or infinite for seed 16" in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_processes_on_loopback(tiny_checkpoint, tmp_path):
    """Each takes its share, and the pictures are those of one process, byte for byte."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Compiled for the same number of pictures on each device.
    arguments = (f"--net={tiny_checkpoint}", "--seeds=5-12", "--batch=2", *QUICK)
    cluster = (f"--coordinator=127.0.0.1:{port}", "--num-processes=2")
    processes = [start(*arguments, f"--outdir={tmp_path / 'two'}", *cluster, f"--process-id={i}") for i in range(2)]
    for process in processes:
        stdout, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
        assert f"{tmp_path / 'two'}: 4 pictures, " in stdout
    assert run(*arguments, f"--outdir={tmp_path / 'one'}").returncode == 0
    assert len(pictures(tmp_path / "one")) == 8
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")


def test_interrupted(tiny_checkpoint, tmp_path):
    """Ctrl-C keeps what is finished, whole, and --skip-existing goes on from there."""
    arguments = (f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--batch=1", *QUICK)
    process = start(*arguments, "--seeds=0-9999")
    while not list(tmp_path.glob("*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    finished = pictures(tmp_path)
    lines = [line for line in stderr.splitlines() if line]
    assert lines == [f"{len(finished)} of 10000 are in {tmp_path}", "edm2-sample: interrupted"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(finished)  # nothing half-written
    for path in tmp_path.glob("*.png"):
        Image.open(path).load()
    result = run(*arguments, f"--seeds=0-{len(finished)}", "--skip-existing")
    assert f"{len(finished)} there already" in result.stdout


def test_what_is_refused(digits_pkl, latent_pkl, tmp_path):
    out = f"--outdir={tmp_path / 'out'}"
    net = f"--net={digits_pkl}"
    for arguments, text in (
        ([net], "Missing option '--outdir'"),
        ([out], "give --preset NAME or --net PATH"),
        (["--net=nowhere.pkl", out], "nowhere.pkl: there is no such file or folder"),
        (["--preset=edm2-img512-q", out], "there is no preset 'edm2-img512-q'; did you mean"),
        ([net, out, "--guidance=2"], "--guidance needs a guiding network"),
        ([net, out, f"--gnet={digits_pkl}"], "--gnet needs --guidance"),
        ([net, out, "--guidance-interval=1,2"], "--guidance-interval needs --guidance"),
        ([net, out, "--guidance-interval=1"], "is no interval of noise levels such as 0.28,2.9"),
        ([net, out, "--sigma-min=5", "--sigma_max=2"], "must be 0 < sigma_min <= sigma_max, not 5 and 2"),
        ([net, out, "--seeds=5-1"], "is no list of seeds"),
        ([net, out, "--seeds=0-99999999"], "has more than 10,000,000 seeds"),
        ([net, out, "--sampler=dpmpp-2m", "--S_churn=3"], "churn is for the samplers heun and euler, not dpmpp-2m"),
        ([net, out, "--grid", "--latents"], "--grid goes with neither"),
        ([net, out, "--num-processes=2"], "go together"),
        ([net, out, "--coordinator=h:1", "--num-processes=2", "--process-id=2"], "is not below"),
        ([net, f"--outdir={digits_pkl}"], "is a file"),
        ([net, "--outdir=/proc/nowhere"], "/proc/nowhere: "),
    ):
        fails(*arguments, text=text)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "grid.png").mkdir(parents=True)
    for arguments, text in (
        ([net, out, "--class=10", *QUICK], "digits.pkl: class 10 is out of range: the network has classes 0 to 9"),
        ([net, out, f"--gnet={latent_pkl}", "--guidance=2", *QUICK], "the guide has img_channels 4, and the network 1"),
        ([net, out, "--device=gpu"], "JAX finds no gpu here"),
        ([f"--net={__file__}", out], "is no pickle"),
        ([net, out, f"--sha256={'0' * 64}", *QUICK], "as demanded"),
        ([net, out, "--grid", *QUICK], "grid.png: is a folder and would be lost"),
        ([net, out, "--vae=somewhere", *QUICK], "does not say that it draws latents of a VAE: leave out --vae"),
        ([net, out, "--rho=0.001"], "noise levels are beyond float32"),
    ):
        fails(*arguments, text=text)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_disk_that_is_really_full(tiny_checkpoint, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        result = run(f"--net={tiny_checkpoint}", f"--outdir={tmp_path}", "--seeds=0-99", *QUICK)
        assert result.returncode == 2
        finished = pictures(tmp_path)
        *counted, last = result.stderr.splitlines()
        assert last.startswith(f"edm2-sample: {tmp_path}/0000")
        assert last.endswith(".png: No space left on device")
        assert counted == [f"{len(finished)} of 100 are in {tmp_path}"]
        for path in tmp_path.glob("*.png"):
            Image.open(path).load()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_help_shows_examples_that_run(digits_pkl, tmp_path):
    """Those with the digits network, as they stand in --help, from a folder that has golden/."""
    lines = map(str.strip, re.sub(r"\\\n *", "", run("--help").stdout).splitlines())
    examples = [line for line in lines if line.startswith("edm2-sample ") and "digits.pkl" in line]
    assert len(examples) == 2
    (tmp_path / "golden").symlink_to(digits_pkl.parent)
    for example in examples:
        result = subprocess.run(
            [*COMMAND, *example.split()[1:], "--steps=1"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "grid.png").exists()
