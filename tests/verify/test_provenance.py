"""What was made from another snapshot is refused, and is no evidence; verdicts claim what was checked."""

import json

import jax
import jax.numpy as jnp
import pytest

import jax_edm2
from tests.support.command_line import Tool

VERIFY = Tool("edm2-verify", [])
PARAMETERS = ("--checks", "parameters", "--device", "cpu")


@pytest.fixture(scope="module")
def truth(digits_pkl, tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "truth.npz"
    assert VERIFY.run(digits_pkl, "--checks", "parameters", "--save-truth", path).returncode == 0
    return path


def test_a_checkpoint_of_another_snapshot(digits_pkl, digits_guide_checkpoint, truth):
    text = "digits-guide.safetensors: was made from another snapshot (digits-guide.pkl, sha256 6c252d89b323...) than "
    beside = ("--checkpoint", digits_guide_checkpoint)
    VERIFY.fails(digits_pkl, *beside, *PARAMETERS, text=f"{text}digits.pkl (sha256 8f6387f0fdc8...): convert that one")
    VERIFY.fails(*beside, "--truth", truth, "--device", "cpu", text=text)


def test_a_truth_of_another_snapshot(digits_guide_pkl, truth):
    text = "truth.npz: was made from another snapshot (digits.pkl, sha256 8f6387f0fdc8...) than "
    VERIFY.fails(digits_guide_pkl, "--truth", truth, "--device", "cpu", text=text)


def test_the_same_weights_in_another_file_are_no_other_snapshot(digits_pkl, digits_checkpoint, tmp_path):
    net, variables = jax_edm2.load(digits_checkpoint)
    record = jax_edm2.read_record(digits_checkpoint)
    source = jax_edm2.read_record(digits_checkpoint).source
    other = type(source)("copy.pkl", "1" * 64)
    jax_edm2.save(tmp_path / "a.safetensors", net, variables, record=type(record)(record.config, source=other))
    done = VERIFY.run(digits_pkl, "--checkpoint", tmp_path / "a.safetensors", *PARAMETERS)
    assert done.returncode == 0, done.stderr


def test_what_was_altered_or_fine_tuned(digits_pkl, digits_checkpoint, tmp_path):
    net, variables = jax_edm2.load(digits_checkpoint, dtype=jnp.float32)
    record = jax_edm2.read_record(digits_checkpoint)
    changed = jax.tree.map(lambda w: w * jnp.float32(1.01), variables)
    jax_edm2.save(tmp_path / "tuned.safetensors", net, changed, record=record)
    claims = type(record)(record.config, source=record.source)  # as if nothing had happened
    jax_edm2.save(tmp_path / "altered.safetensors", net, changed, record=claims)
    for name, text in (
        ("tuned", "fine-tuned from this snapshot: 63 t"),
        ("altered", "altered since it was converted: 63 t"),
    ):
        done = VERIFY.run(digits_pkl, "--checkpoint", tmp_path / f"{name}.safetensors", *PARAMETERS, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["verdict"]) == (1, "disagrees")
        assert found["headline"] == "the parameters are not equal; no network was run"
        assert text in found["reasons"][0]


def test_a_verdict_names_what_was_checked(digits_pkl):
    done = VERIFY.run(digits_pkl, *PARAMETERS)
    assert done.stdout.endswith("\nAGREES IN PARAMETERS: the parameters are equal; no network was run.\n")
    record = json.loads(VERIFY.run(digits_pkl, *PARAMETERS, "--json").stdout)
    assert (record["verdict"], record["checked"]) == ("agrees", ["parameters"])
    assert record["headline"] == "the parameters are equal; no network was run"
    done = VERIFY.run(digits_pkl, "--checks", "trajectory", "--steps", 2, "--device", "cpu")
    headline = "JAX computes what PyTorch computes; checked: trajectory; not checked: parameters, forward, gradients"
    assert done.stdout.endswith(f"\nAGREES IN PART: {headline}.\n")
