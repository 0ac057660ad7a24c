"""The goldens: they are what their scripts make, they cover every option, they pass here, and faults trip over them."""

import dataclasses
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest

from jax_edm2.config import EDM2Config
from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.verify.golden import networks
from jax_edm2.converter.verify.golden.check import FOLDER, check_golden, check_records
from jax_edm2.converter.verify.golden.networks import network_tensors, normalised_digest
from jax_edm2.converter.verify.truth import Truth, projection
from jax_edm2.converter.verify.verdict import MARGIN
from jax_edm2.golden import ema, truths
from tests.corpora.faults import FAULTS
from tests.support.command_line import Tool
from tests.surveys.golden_faults import tripped

run = Tool("edm2-verify", processes.module("jax_edm2.converter.cli.verify")).run
SMALL = ("one-level.npz", "balances.npz")


def test_every_option_is_covered():
    configs = [EDM2Config(**kwargs) for kwargs in networks.NETWORKS.values()]
    assert len(configs) >= 6
    for field in dataclasses.fields(EDM2Config):
        values = {getattr(config, field.name) for config in configs}
        assert len(values) > 1, field.name
    blocks = [spec for c in configs for spec in c.architecture.encoder + c.architecture.decoder]
    assert {spec.resample for spec in blocks} == {"keep", "up", "down"}
    assert {bool(spec.num_heads) for spec in blocks} == {True, False}


def test_they_are_small():
    tracked = subprocess.run(["git", "ls-files", "golden"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not in a git checkout")
    assert 1e6 < sum((ROOT / name).stat().st_size for name in tracked.stdout.split()) < 5e6


@pytest.mark.parametrize("name", truths.NAMES)
def test_tolerances_are_three_times_what_was_measured(name):
    with Truth(FOLDER / truths.file_name(name)) as truth:
        measured, allowed = truth.golden.measured, truth.golden.tolerance
        assert truth.golden.normalised == normalised_digest(network_tensors(name))
        assert truth.golden.on[0]["jax"]
    assert allowed.accumulated == MARGIN * max(measured["accumulated"], measured["compiled"])
    assert allowed.gradient == MARGIN * measured["gradient"]
    assert allowed.trajectory == MARGIN * measured["trajectory"]
    assert (allowed.k, allowed.rounding, allowed.ceiling) == (0, 0, 1)
    assert max(measured.values()) < 1e-5


def test_what_is_committed_is_what_the_script_makes(tmp_path):
    """Of one network; make golden ARGS=--check does all."""
    truths.record("one level", tmp_path)
    assert list(truths.compare(FOLDER / "one-level.npz", tmp_path / "one-level.npz")) == []


def test_a_difference_is_shown(tmp_path):
    with Truth(FOLDER / "one-level.npz") as truth:
        golden = dataclasses.replace(truth.golden, normalised="0" * 64)
        facts = dataclasses.replace(truth.facts, golden=golden)
        with truths.TruthWriter(tmp_path / "other.npz") as other:
            for key in truth.keys():  # noqa: SIM118
                other[key] = truth[key] * (1 + 1e-6 * (key == "trajectory"))
            other.finish(facts)
    lines = list(truths.compare(FOLDER / "one-level.npz", tmp_path / "other.npz"))
    assert [line.split(": ", 1)[1].split()[0] for line in lines] == ["normalised", "trajectory"]


def test_ema_record():
    found = ema.record()
    committed = json.loads(ema.RECORD.read_text())
    np.testing.assert_allclose(found["coefficients"], committed["coefficients"], rtol=0, atol=ema.BOUNDS[2])
    assert found["averages"] == pytest.approx(committed["averages"], rel=0, abs=1e-15)
    assert [check.agrees for check in check_records()] == [True] * len(check_records())


def test_projections_see_every_change():
    x = np.random.default_rng(0).standard_normal((3, 40))
    assert np.array_equal(projection("w", x), projection("w", x))
    assert not np.array_equal(projection("w", x), projection("v", x))
    changed = x.copy()
    changed[1, 7] += 1e-3
    apart = np.linalg.norm(projection("w", changed) - projection("w", x)) / np.linalg.norm(projection("w", x))
    assert 1e-5 < apart < 1e-3
    assert projection("w", x)[0] == np.linalg.norm(x)


def test_edm2_verify_golden(tmp_path):
    """As in somebody's CI, with two of the goldens."""
    for name in SMALL:
        shutil.copy(FOLDER / name, tmp_path)
    result = run("--golden", tmp_path, "--device=cpu", "--report", tmp_path / "report")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("AGREES: this machine computes what the goldens say.\n")
    assert max(map(len, result.stdout.splitlines())) <= 100
    report = json.loads((tmp_path / "report" / "goldens.json").read_text())
    assert (report["schema"], report["verdict"], report["exit_code"]) == ("edm2-golden/1", "agrees", 0)
    assert set(report["reports"]) == {"one level", "balances"}
    assert len(report["checks"]) == 10
    assert all(check["error"] <= check["limit"] <= MARGIN * 1e-5 for check in report["checks"])
    page = (tmp_path / "report" / "index.html").read_text()
    for network in report["reports"]:
        assert f'<a href="{network}/report.html">' in page
        assert (tmp_path / "report" / network / "report.html").exists()


def test_wrong_use(tmp_path, digits_pkl):
    for arguments, text in (
        (["--golden", tmp_path], "has no goldens"),
        (["--golden", tmp_path, "--precision", "bfloat16"], "not with precision"),
        (["--golden", tmp_path, digits_pkl], "not with snapshot"),
    ):
        result = run(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["silu constant 0.5964", "Euler for Heun"])
def test_faults_trip_over_them(name):
    """Some of the corpus; make golden-faults tries all of it."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    assert tripped(fault) is not None


def test_other_weights_are_seen(monkeypatch):
    tensors = networks.weights("one level")
    tensors["unet.out_conv.weight"][0, 0, 0, 0] += 2.0**-10
    monkeypatch.setattr(networks, "weights", lambda name: tensors)
    with Truth(FOLDER / "one-level.npz") as truth, jax.disable_jit(False):
        truth.plan = dataclasses.replace(truth.plan, checks=("parameters",))
        outcome = check_golden(truth)
    assert outcome.exit_code == 1
    assert "parameters are not equal" in outcome.reasons[0]
    assert "another digest" in outcome.reasons[-1]
