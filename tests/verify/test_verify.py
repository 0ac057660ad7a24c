"""Verification as a library: when it refuses to judge, correct random networks, speed figures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jax_edm2 import Precond, fold, save
from jax_edm2 import network as jax_network
from jax_edm2.config import EDM2Config
from jax_edm2.converter.networks import in_memory
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.cases import Plan, make_case
from jax_edm2.converter.verify.jax_side.candidate import Candidate
from jax_edm2.converter.verify.jax_side.judgement import judge
from jax_edm2.converter.verify.jax_side.precision import probe_jax
from jax_edm2.converter.verify.precision import probe_verdict
from jax_edm2.converter.verify.throughput.job import EAGER, FOLDED, LOADED, Job
from jax_edm2.converter.verify.throughput.measure import measure
from jax_edm2.converter.verify.throughput.worker import WorkerDied
from jax_edm2.converter.verify.torch_side.precision import probe_torch
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.tensors import CheckpointError
from jax_edm2.torch_ref.training import PowerFunctionEMA
from tests.support.networks import configs, relative_error
from tests.surveys.verify import verify_random


def judged(laboratory, change=lambda facts: facts, checks=("forward",)):
    """The outcome for the correct network, the truth file's facts changed."""
    with read_snapshot(laboratory.path) as snapshot, Truth(laboratory.truth_path) as truth:
        truth.plan = dataclasses.replace(truth.plan, checks=checks)
        truth.facts = change(truth.facts)
        with jax.disable_jit():
            candidate = Candidate(Precond(truth.config), in_memory(snapshot), truth.config)
            return judge(candidate, truth, snapshot=snapshot)


# Refusals


def rounded_to_tf32(x):
    """What a TF32 unit makes of a float32 operand: ten bits after the point."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + jnp.uint32(1 << 12)) & jnp.uint32(0xFFFFE000), jnp.float32)


def test_tf32_left_on_in_jax_is_inconclusive(laboratory, monkeypatch):
    assert probe_verdict(probe_jax(), "float32") is None
    convolve = jax_network.convolve
    rounded = lambda x, w, *rest: convolve(rounded_to_tf32(x), rounded_to_tf32(w), *rest)  # noqa: E731
    monkeypatch.setattr(jax_network, "convolve", rounded)
    outcome = judged(laboratory)
    assert outcome.exit_code == 3
    assert "a convolution in JAX computes 1 + 2^-12 as 1.0000000: float32 is not strict" in outcome.reasons[0]


def test_tf32_left_on_in_torch_is_inconclusive(laboratory, monkeypatch):
    assert probe_verdict(probe_torch("cpu"), "float32") is None
    convolve = torch.nn.functional.conv2d
    half = lambda x: x.to(torch.bfloat16).float()  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, w: convolve(half(x), half(w)))
    problem = probe_verdict(probe_torch("cpu"), "float32")
    assert "a convolution in PyTorch" in problem
    outcome = judged(laboratory, lambda facts: dataclasses.replace(facts, switches={"problem": problem}))
    assert (outcome.exit_code, outcome.reasons[0]) == (3, problem)


def test_a_reference_that_is_far_off_is_inconclusive(laboratory):
    def spoil(facts):
        facts.errors["seed0"]["isolated"]["unet.enc.8x8_block0/conv_res0"]["error"] = 1e-3
        return facts

    outcome = judged(laboratory, spoil)
    assert outcome.exit_code == 3
    assert (
        "PyTorch itself is 1.0e-03 from the truth at 1 places, isolated unet.enc.8x8_block0/conv_res0"
        in outcome.reasons[0]
    )


def test_an_unrepeatable_reference_is_inconclusive(laboratory):
    outcome = judged(laboratory, lambda facts: dataclasses.replace(facts, repeat=1e-5))
    assert (outcome.exit_code, outcome.reasons) == (
        3,
        ["the reference is not repeatable: two runs of PyTorch differ by 1.0e-05"],
    )


def test_parameters_that_differ_are_a_disagreement_whatever_the_precision(laboratory):
    def spoil(facts):
        facts.switches["problem"] = "TF32"
        facts.parameters["unet.out_gain"]["sha256"] = "0" * 64
        return facts

    outcome = judged(laboratory, spoil, ("parameters",))
    assert outcome.exit_code == 1


def test_a_tap_that_only_the_reference_has(laboratory):
    def spoil(facts):
        facts.errors["seed0"]["isolated"].pop("unet.enc.8x8_block0/silu1")
        return facts

    outcome = judged(laboratory, spoil)
    assert outcome.exit_code == 1
    assert outcome.guilty[0].operation == "silu1"
    assert "a tap that the reference does not have" in outcome.guilty[0].why


# Correct networks


@settings(max_examples=1, phases=[Phase.generate])  # `make survey` does 200; shrinking would take minutes
@given(kwargs=configs(), number=st.integers(0, 2**20))
def test_random_networks_agree(tmp_path_factory, kwargs, number):
    plan = Plan(seeds=(number,), steps=4)
    (outcome,) = verify_random(kwargs, number, tmp_path_factory.mktemp("random"), plan, ["float32"])
    assert outcome.verdict == "agrees", outcome.reasons


def test_cases_show_every_noise_level_and_no_label():
    config = EDM2Config(8, 3, 7)
    case = make_case(config, Plan(batch=6), 0)
    assert case.x.shape == (6, 3, 8, 8)
    assert set(np.float32([0.002, 0.3, 3.0, 80.0])) == set(case.sigma)
    assert case.labels.sum(axis=1).tolist() == [1, 0, 1, 1, 1, 0]
    again = make_case(config, Plan(batch=6), 0)
    assert np.array_equal(case.x, again.x)
    assert not np.array_equal(case.x, make_case(config, Plan(batch=6), 1).x)


# Folding and training


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_folded_network_computes_the_same(laboratory, dtype):
    with read_snapshot(laboratory.path) as snapshot:
        net, variables = Precond(snapshot.config, dtype), in_memory(snapshot)
        case = make_case(snapshot.config, Plan(), 0)
    folded, prepared = fold(net, variables)
    arguments = case.x, case.sigma, case.labels
    plain = jax.jit(lambda v: net.apply(v, *arguments, return_logvar=True))(variables)
    fast = jax.jit(lambda v: folded.apply(v, *arguments, return_logvar=True))(prepared)
    bound = 4.2e-7 if dtype == jnp.float32 else 1.2e-3  # measured: 1.4e-7 and 4e-4
    assert all(relative_error(f, p) <= bound for f, p in zip(fast, plain, strict=True))


def test_folded_variables_cannot_be_saved(laboratory, tmp_path):
    with read_snapshot(laboratory.path) as snapshot:
        net, variables = fold(Precond(snapshot.config), in_memory(snapshot))
    with pytest.raises(CheckpointError, match="folded"):
        save(tmp_path / "x.safetensors", net, variables)


def test_average_is_that_of_torch_ref():
    from jax_edm2 import update_average

    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2)
    ema = PowerFunctionEMA(linear, stds=(0.1,))
    average = jnp.asarray(linear.weight.detach().numpy())
    with torch.no_grad():
        linear.weight += 1
    ema.update(nimg=4096, batch_size=1024)
    average = update_average(
        average, jnp.asarray(linear.weight.detach().numpy()), images_seen=4096, batch_size=1024, std=0.1
    )
    found = relative_error(average, ema.nets[0].weight.detach().numpy())
    assert found <= 1.2e-7  # float32 rounds at 6e-8, and twice; measured: 8.3e-8


# Throughput


def test_throughput_of_digits(digits_pkl):
    job, ways = Job(str(digits_pkl), 8, "float32", "cpu"), {"torch": (EAGER,), "jax": (LOADED, FOLDED)}
    with read_snapshot(digits_pkl) as snapshot:
        found = measure(snapshot.config, job, lambda stage: None, ways=ways, rounds=2)
    assert set(found["ways"]) == {"PyTorch eager", "JAX as loaded", "JAX folded"}
    for figures in found["ways"].values():
        assert figures["evaluations_per_second"] > 0
        assert figures["images_per_second"] == pytest.approx(8 * figures["evaluations_per_second"] / 63)
    assert all(entry["peak_bytes"] > 50e6 for entry in found["memory"].values())
    json.dumps(found)


def test_a_worker_that_dies_is_an_error(digits_pkl, tmp_path):
    with read_snapshot(digits_pkl) as snapshot:
        config = snapshot.config
    with pytest.raises(WorkerDied, match="the torch process ended"):
        measure(config, Job(str(tmp_path / "none.pkl"), 1, "float32", "cpu"), lambda stage: None)
