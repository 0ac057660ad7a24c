"""Networks that are too large to be held: their weights are read as they are needed, and nothing else is different."""

import math
import sys

import click
import jax
import numpy as np
import pytest
import torch

from jax_edm2.config import expected_tree
from jax_edm2.converter.cli.verify import edm2_verify
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify import oracle_process
from jax_edm2.converter.verify.cases import Plan, make_case
from jax_edm2.converter.verify.jax_side import taps as jax_taps
from jax_edm2.converter.verify.jax_side import unread
from jax_edm2.converter.verify.jax_side.candidate import load_candidate
from jax_edm2.converter.verify.jax_side.judgement import judge
from jax_edm2.converter.verify.oracle_process import make_truth, truth_bytes
from jax_edm2.converter.verify.request import FromSnapshot, VerifyError
from jax_edm2.converter.verify.torch_side import oracle
from jax_edm2.converter.verify.torch_side.job import Job
from jax_edm2.converter.verify.torch_side.reference import Reference
from jax_edm2.converter.verify.torch_side.taps import tapped
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.messages import one_line
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.bench import verify_memory
from tests.support.networks import network

CONFIG = {
    "img_resolution": 8,
    "img_channels": 2,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 0,
    "attn_resolutions": [],
    "channels_per_head": 8,
}
PLAN = Plan(checks=("parameters", "forward", "trajectory"), steps=1, batch=1)
SCALARS = 200  # bytes: more than all gains have


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "small.pkl"
    write_snapshot(path, network(CONFIG, 3))
    return path


@pytest.fixture(scope="module")
def truths(path):
    """Truth files of both ways."""
    made = {}
    for held in (math.inf, 0):
        made[held] = path.with_name(f"{held}.npz")
        oracle.compute(Job(str(path), str(made[held]), PLAN, held=held))
    return made


@pytest.mark.parametrize("reference", ["torch_ref", "embedded"])
def test_the_truth_is_the_same(path, truths, reference, tmp_path):
    read = truths[0]
    if reference == "embedded":
        read = tmp_path / "embedded.npz"
        oracle.compute(Job(str(path), str(read), PLAN, reference, held=0))
    with Truth(truths[math.inf]) as a, Truth(read) as b:
        assert a.keys() == b.keys()
        for key in a.keys():  # noqa: SIM118
            assert np.array_equal(a[key], b[key]), key
        for fact in ("parameters", "amplification", "not_finite", "errors", "repeat", "switches"):
            assert getattr(a.facts, fact) == getattr(b.facts, fact), fact


def test_what_is_said_of_jax_is_the_same(path, truths):
    found = []
    for held in (math.inf, 0):
        with read_snapshot(path) as snapshot, Truth(truths[math.inf]) as truth:
            candidate = load_candidate(snapshot.config, "float32", snapshot=snapshot, held=held)
            candidate.prepare(PLAN)
            found.append(judge(candidate, truth, snapshot=snapshot))
    assert [outcome.verdict for outcome in found] == ["agrees", "agrees"]
    assert found[0].findings.parameters == found[1].findings.parameters == []
    assert found[0].measurements == found[1].measurements  # bit for bit: every error is
    assert {m.kind for m in found[0].measurements["forward"]} == {"accumulated", "isolated", "compiled", "folded"}
    assert len(found[0].measurements["trajectory"]) == 2


def test_torch_holds_the_weights_of_one_module(path):
    with read_snapshot(path) as snapshot:
        case = make_case(snapshot.config, PLAN, 0)
        reference = Reference(snapshot, "torch_ref", "cpu", held=0)
        held = []

        def note(*_):
            tensors = reference.net.state_dict().values()
            held.append(sum(tensor.nbytes for tensor in tensors if tensor.device.type != "meta"))

        def visit(_tap, value):
            note()
            return value

        for size in (8, 4):
            held.clear()
            for module in reference.net.modules():  # after those that take the weights
                module.register_forward_pre_hook(note)
            with torch.no_grad(), tapped(reference.net, reference.namespace, snapshot.config, visit):
                reference(case.x, case.sigma, case.labels, "float32")
            largest = size * max(math.prod(record.shape) for record in snapshot.tensors.values())
            assert largest <= max(held) <= largest + SCALARS
            note()
            assert held[-1] == 0
            reference.lower()


def test_jax_holds_the_weights_of_one_block(path, monkeypatch):
    with read_snapshot(path) as snapshot:
        config, case = snapshot.config, make_case(snapshot.config, PLAN, 0)
        tree = {name: shape for name, shape in expected_tree(config).items() if len(shape) == 4}
        candidate = load_candidate(config, "float32", snapshot=snapshot, held=0)
        before = {id(array) for array in jax.live_arrays()}
        held = []

        def raised(variables):
            taken = unread.raised(variables)
            weights = (a for a in jax.live_arrays() if a.shape in tree.values() and id(a) not in before)
            held.append(sum(a.nbytes for a in weights))
            return taken

        monkeypatch.setattr(jax_taps, "raised", raised)
        candidate.tapped(case.x, case.sigma, case.labels, lambda _tap, value: value)
    blocks = [f"/{spec.flavor}_{spec.name}/" for spec in config.architecture.encoder + config.architecture.decoder]
    sizes = [sum(4 * math.prod(shape) for name, shape in tree.items() if block in name) for block in blocks]
    assert max(held) == max(sizes) < sum(sizes) / 2


def test_a_folded_network_is_shown_one_image_after_the_other(path):
    shown = []

    def denoise(variables, x, sigma, labels):
        shown.append((len(x), len(sigma), len(labels)))
        return x * sigma[:, None, None, None] + labels.sum(), sigma

    with read_snapshot(path) as snapshot:
        candidate = load_candidate(snapshot.config, "float32", snapshot=snapshot, held=0)
        case = make_case(snapshot.config, Plan(batch=4), 0)
        candidate._compiled["folded"] = denoise
        denoised, logvar = candidate.denoise_folded(case.x, case.sigma, case.labels)
    assert shown == [(1, 1, 1)] * 4
    labels = case.labels.sum(axis=1)[:, None, None, None]
    assert np.array_equal(denoised, case.x * case.sigma[:, None, None, None] + labels)
    assert np.array_equal(logvar, case.sigma)


def test_a_network_is_not_run_as_a_whole_while_pytorch_needs_the_memory(path, monkeypatch):
    monkeypatch.setattr(unread.Unread, "stored", lambda self: pytest.fail(f"{self.shape} is read as stored"))
    monkeypatch.setattr(unread.Unread, "__array__", lambda self, dtype=None, copy=None: np.zeros(self.shape, "f4"))
    with read_snapshot(path) as snapshot:
        load_candidate(snapshot.config, "float32", snapshot=snapshot, held=0).prepare(PLAN)


def test_one_step_is_accepted_on_the_command_line(tmp_path):
    arguments = [str(tmp_path / "none.pkl"), "--device", "cpu", "--steps"]
    with pytest.raises(ConverterError, match="there is no such file"):
        edm2_verify.main([*arguments, "1"], standalone_mode=False)
    with pytest.raises(click.BadParameter, match="0 is not in the range"):
        edm2_verify.main([*arguments, "0"], standalone_mode=False)


# The truth's size


OTHER = {**CONFIG, "label_dim": 0, "clip_act": None, "channel_mult": [1, 2], "attn_resolutions": [8], "dropout": 0.1}


@pytest.mark.parametrize(
    ("kwargs", "plan"),
    [(CONFIG, Plan(checks=("forward",), seeds=(0, 1), batch=3)), (OTHER, Plan(steps=2, batch=3))],
)
def test_the_size_of_a_truth_is_known_beforehand(kwargs, plan, tmp_path):
    write_snapshot(tmp_path / "small.pkl", network(kwargs, 3))
    oracle.compute(Job(str(tmp_path / "small.pkl"), str(tmp_path / "truth.npz"), plan))
    with Truth(tmp_path / "truth.npz") as truth:
        size = sum(truth[key].nbytes for key in truth.keys())  # noqa: SIM118
        assert size <= truth_bytes(truth.config, plan) <= 1.02 * size


def test_a_full_disk_is_known_beforehand(path, tmp_path, monkeypatch):
    disk = type("Usage", (), {"free": 10**4})
    monkeypatch.setattr(oracle_process.shutil, "disk_usage", lambda _folder: disk)
    monkeypatch.setattr(
        oracle_process.subprocess, "Popen", lambda *_args, **_kwargs: pytest.fail("PyTorch was started")
    )
    with pytest.raises(VerifyError) as caught:
        make_truth(FromSnapshot(path, PLAN), tmp_path / "truth.npz")
    assert "the truth takes 0.0 GB, and there are 0.0 GB free: make room" in one_line(str(caught.value))


def test_memory_is_that_of_the_whole_family(monkeypatch):
    monkeypatch.setattr(verify_memory, "EVERY", 0.05)
    grown = "x = b'x' * 10**8; import time; time.sleep(2)"
    family = f"import subprocess, sys; x = b'x' * 10**8; subprocess.run([sys.executable, '-c', {grown!r}])"
    code, _, peak, largest = verify_memory.measure([sys.executable, "-c", family])
    assert code == 0
    assert 0.1 < largest < 0.15
    assert 0.2 < peak < 0.3
