"""Post-hoc EMA: what snapshots make, beside float64 and beside NVlabs' order of operations in torch."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import jax_edm2
from jax_edm2.converter import averages, phema, to_snapshot
from jax_edm2.converter.convert import convert
from jax_edm2.converter.errors import UsageError
from jax_edm2.converter.names import jax_path
from jax_edm2.converter.networks import record_of
from jax_edm2.converter.phema import PhemaError, PhemaRequest, reconstruct
from jax_edm2.converter.snapshot import Snapshot, read_snapshot
from jax_edm2.ema import nvlabs_coefficients, posthoc_coefficients
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support.command_line import Tool
from tests.support.killed import AVERAGED as CONFIG
from tests.support.killed import STDS, TIMES, WANTED, reconstructions, write_snapshots
from tests.support.listener import Listener
from tests.support.networks import network

PHEMA = Tool("edm2-phema", [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_snapshots(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def inputs(folder):
    """(images, std) and the tensors of each, in order of time."""
    found = []
    for kimg in TIMES:
        for std in STDS:
            with read_snapshot(folder / f"run-{kimg:07d}-{std:.3f}.pkl") as snapshot:
                tensors = {name: snapshot.read(name) for name in snapshot.tensors}
            found.append(((phema.images_of(kimg, ""), std), tensors))
    return found


def leaves(path):
    _, variables = jax_edm2.load(path)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(leaf)
            for p, leaf in jax.tree_util.tree_leaves_with_path(variables)}  # fmt: skip


@pytest.mark.parametrize("at_once", [averages.PIECE, 999])
def test_averages_are_rounded_once(folder, inputs, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(averages, "PIECE", at_once)  # pieces that end within tensors
    listener = Listener()
    report = reconstruct(PhemaRequest(folder, tmp_path, WANTED), progress=listener.show)
    profiles = [profile for profile, _ in inputs]
    exact = posthoc_coefficients(profiles, [(profiles[-1][0], std) for std in WANTED])
    assert [made.path.name for made in report.made] == [f"phema-0000524-{std:.3f}.safetensors" for std in WANTED]
    for column, made in enumerate(report.made):
        found = leaves(made.path)
        for name, last in inputs[-1][1].items():
            stacked = np.stack([tensors[name].astype(np.float64) for _, tensors in inputs])
            truth = np.tensordot(exact[:, column], stacked, 1).astype(np.float16)
            if jax_path(name).startswith("constants/"):
                truth = last
            np.testing.assert_array_equal(found[jax_path(name)], truth)
    total = sum(array.nbytes for _, tensors in inputs for array in tensors.values())
    assert listener.progress == [[folder.name, total, total]]  # once for all


def test_nvlabs_rounding_is_torchs(folder, inputs, tmp_path):
    (made,) = reconstruct(PhemaRequest(folder, tmp_path, (0.15,), nvlabs_rounding=True)).made
    profiles = [profile for profile, _ in inputs]
    coefficients = nvlabs_coefficients(profiles, [(profiles[-1][0], 0.15)])[:, 0]
    found, apart = leaves(made.path), 0
    for name in inputs[0][1]:
        average = torch.zeros(inputs[0][1][name].shape)
        for (_, tensors), coefficient in zip(inputs, coefficients, strict=True):
            average += torch.from_numpy(tensors[name]).float() * coefficient
        if not jax_path(name).startswith("constants/"):
            np.testing.assert_array_equal(found[jax_path(name)], average.half().numpy())
            apart += int((average.double().numpy() != 0).sum())
    assert apart > 1000
    exact = posthoc_coefficients(profiles, [(profiles[-1][0], 0.15)])[:, 0]
    np.testing.assert_allclose(coefficients, exact, rtol=0, atol=1e-11)  # measured: 3e-14


def test_the_record_says_what_it_is_made_of(folder, inputs, tmp_path):
    (made,) = reconstruct(PhemaRequest(folder, tmp_path, (0.075,), outkimg=262, dtype="float32")).made
    record = jax_edm2.read_record(made.path)
    average = record.average
    assert made.path.name == "phema-0000262-0.075.safetensors"
    assert (record.dtype, record.source, average.std, average.images) == ("float32", None, 0.075, 262144)
    assert average.names == tuple(f"run-{kimg:07d}-{std:.3f}.pkl" for kimg in TIMES[:3] for std in STDS)
    assert average.images_seen == tuple(profile[0] for profile, _ in inputs[:6])
    exact = posthoc_coefficients([profile for profile, _ in inputs[:6]], [(262144, 0.075)])[:, 0]
    assert average.coefficients == tuple(exact)
    with read_snapshot(folder / average.names[1]) as snapshot:
        assert convert(snapshot, tmp_path / "second.safetensors").digest == average.digests[1]
    assert made.magnitude == pytest.approx(sum(map(abs, exact)))
    assert made.error == made.magnitude * 2**-11
    assert 1 < average.condition < 1e6
    model = jax_edm2.from_pretrained(made.path)
    assert jax_edm2.save(tmp_path / "again.safetensors", model.net, model.variables, record=record) == record


def test_averages_that_are_there(folder, tmp_path):
    request = PhemaRequest(folder, tmp_path, (0.1, 0.2))
    first = reconstruct(PhemaRequest(folder, tmp_path, (0.1,))).made[0]
    before = first.path.read_bytes()
    with pytest.raises(FileExistsError):
        reconstruct(request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phema-0000524-0.100.safetensors"]
    report = reconstruct(PhemaRequest(folder, tmp_path, (0.1, 0.2), skip=True))
    assert (report.skipped, [made.path.name for made in report.made]) == (
        [first.path], ["phema-0000524-0.200.safetensors"],
    )  # fmt: skip
    again = reconstruct(PhemaRequest(folder, tmp_path, (0.1, 0.2), force=True)).made[0]
    assert again.path.read_bytes() == before
    assert reconstruct(PhemaRequest(folder, tmp_path, (0.1, 0.2), skip=True)).made == []


def test_an_error_leaves_nothing(folder, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Snapshot, "read_part", broken)
    with pytest.raises(OSError, match="Input/output"):
        reconstruct(PhemaRequest(folder, tmp_path, (0.1,)))
    assert list(tmp_path.iterdir()) == []


def test_formats_hold_the_same(folder, tmp_path):
    made = {}
    for form in ("safetensors", "orbax", "pkl"):
        (found,) = reconstruct(PhemaRequest(folder, tmp_path, (0.15,), format=form)).made
        made[form] = found.record.digest
        assert found.path.suffix == f".{form}"
        if form != "pkl":
            assert jax_edm2.read_record(found.path) == found.record
    assert len(set(made.values())) == 1
    with read_snapshot(tmp_path / "phema-0000524-0.150.pkl") as snapshot:
        assert record_of(snapshot).digest == made["pkl"]
        with read_snapshot(folder / "run-0000524-0.100.pkl") as last:
            assert snapshot.source == last.source
    with pytest.raises(UsageError, match="--format pkl has the snapshots' dtype"):
        PhemaRequest(folder, tmp_path, (0.15,), format="pkl", dtype="float32")


def test_killed_at_any_moment(folder, tmp_path):
    """SIGKILL at random moments; `make kills` does more."""
    assert reconstructions(folder, tmp_path, 12)


def test_it_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    """Tensors that are done are not read again; what was begun otherwise is not gone on with."""
    request, read = PhemaRequest(folder, tmp_path, (0.1, 0.2)), []
    write, count = averages.Averages._tensor, []

    def interrupted(self, name, *arguments):
        if len(count) == 10:
            raise KeyboardInterrupt
        count.append(name)
        return write(self, name, *arguments)

    monkeypatch.setattr(averages, "MOST_THREADS", 1)
    monkeypatch.setattr(averages.Averages, "_tensor", interrupted)
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):
        reconstruct(request, warn=listener.warnings.append)
    (unfinished,) = tmp_path.iterdir()
    assert listener.warnings == [f"{unfinished}: has what is done so far; the same command goes on from there"]
    monkeypatch.setattr(averages.Averages, "_tensor", lambda self, name, *a: read.append(name) or write(self, name, *a))
    busy = averages.Journal.opened(tmp_path / ".busy", "x")
    with busy, pytest.raises(averages.BusyError, match="is at work here"):
        averages.Journal.opened(tmp_path / ".busy", "x").__enter__()
    made = reconstruct(request).made
    assert not set(count) & set(read)
    assert set(count) | set(read) == set(open_names(folder))
    for other in (dataclasses.replace(request, outdir=tmp_path / "b"), dataclasses.replace(request, force=True)):
        assert [m.record for m in reconstruct(other).made] == [m.record for m in made]
        assert set(read) == set(open_names(folder))


def test_a_copy_that_was_cut_short_is_made_again(folder, tmp_path, monkeypatch):
    """Killed while the last snapshot was copied, for averages in its container."""
    copyfile = shutil.copyfile

    def killed(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:5000])
        raise KeyboardInterrupt  # after which, as after a kill, the folder stays

    request = PhemaRequest(folder, tmp_path, (0.15,), format="pkl")
    monkeypatch.setattr(to_snapshot.shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(request, warn=lambda line: None)
    monkeypatch.setattr(to_snapshot.shutil, "copyfile", copyfile)
    (made,) = reconstruct(request).made
    with read_snapshot(made.path) as snapshot:
        assert record_of(snapshot).digest == made.record.digest


def open_names(folder):
    with read_snapshot(next(folder.iterdir())) as snapshot:
        return list(snapshot.tensors)


def test_trees_in_memory(folder, inputs, tmp_path):
    profiles = [profile for profile, _ in inputs]
    trees = [jax_edm2.from_pretrained(folder / f"run-{int(t) // 1000:07d}-{s:.3f}.pkl").variables for t, s in profiles]
    (made,) = reconstruct(PhemaRequest(folder, tmp_path, (0.15,))).made
    tree = jax_edm2.posthoc_average(trees, profiles, (profiles[-1][0], 0.15), dtype=np.float16)
    found = leaves(made.path)
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        np.testing.assert_array_equal(value, found[jax.tree_util.keystr(path, simple=True, separator="/")])
    with pytest.raises(ValueError, match="7 trees are not 8 stored averages"):
        jax_edm2.posthoc_average(trees[1:], profiles, (1000, 0.15))


def test_snapshots_that_do_not_fit(folder, tmp_path):
    def fails(text, **more):
        arguments = {"indir": tmp_path / "in", "outdir": tmp_path / "out", "outstd": (0.1,), **more}
        with pytest.raises(PhemaError) as error:
            reconstruct(PhemaRequest(**arguments))
        assert text in str(error.value)

    fails("there is no such folder")
    (tmp_path / "in").mkdir()
    fails("has no snapshots with names such as NAME-0134217-0.100.pkl")
    for path in sorted(folder.iterdir())[:4]:
        (tmp_path / "in" / path.name).symlink_to(path)
    fails("--outkimg 98: no snapshot is of that time; the last ones are of 65, 131", outkimg=98)
    fails("--outkimg 42: no training of EDM2 has a snapshot at 42 thousand images", outkimg=42)
    other = tmp_path / "in" / "other-0000262-0.100.pkl"
    write_snapshot(other, network({**CONFIG, "model_channels": 16}))
    fails("has snapshots of several runs (other, run); choose with --inprefix")
    other.rename(tmp_path / "in" / "run-0000262-0.100.pkl")
    fails("run-0000065-0.050.pkl: is of another architecture than run-0000262-0.100.pkl")
    (tmp_path / "in" / "run-0000262-0.100.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(jax_edm2.ConverterError, match=r"run-0000262-0\.100\.pkl: "):
        reconstruct(PhemaRequest(tmp_path / "in", tmp_path / "out", (0.1,)))
    (tmp_path / "in" / "run-0000262-0.100.pkl").unlink()
    (tmp_path / "in" / "run-0000131-0.1000.pkl").symlink_to(folder / "run-0000131-0.100.pkl")
    fails("are the same one, of 131072 images and std 0.1")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_snapshots_that_are_missing_are_named(folder, tmp_path):
    (tmp_path / "in").mkdir()
    for path in folder.iterdir():
        if "0000131-0.050" not in path.name:
            (tmp_path / "in" / path.name).symlink_to(path)
    listener = Listener()
    (made,) = reconstruct(PhemaRequest(tmp_path / "in", tmp_path, (0.1,)), warn=listener.warnings.append).made
    assert len(made.record.average.names) == 7
    (line,) = listener.warnings
    assert line.endswith("in: has no run-0000131-0.050.pkl: averages are made of what is there")


def test_the_command(folder, tmp_path):
    done = PHEMA.run("--indir", folder, "--outdir", tmp_path, "--outstd=0.050,0.075,...,0.150", "--batch=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(list(tmp_path.iterdir())) == 5
    assert "phema-0000524-0.125.safetensors: of 8 snapshots, sum of |c| " in done.stdout
    arguments = ("--indir", folder, "--outdir", tmp_path)
    skipped = PHEMA.run(*arguments, "--outstd=0.05,0.2", "--skip", "--json")
    assert [len(found) for found in json.loads(skipped.stdout).values()] == [1, 1]
    PHEMA.fails(*arguments, "--outstd=0.05", text="phema-0000524-0.050.safetensors exists; use --force to replace it")
    for std, text in (
        ("0.3", "--outstd 0.3: a std must be above 0 and below 0.289"),
        ("0.1,0.1001", "--outstd has several averages that would be called 0.100"),
        ("a", "'a' is no list such as"),
        ("0.1,...,0.2", "... comes after two numbers and before one"),
        ("0.1,0.2,...,0.25", "no even steps lead from 0.2 to 0.25"),
        ("0.1,0.1,...,0.2", "no even steps lead from 0.1 to 0.2"),
    ):
        PHEMA.fails(*arguments, f"--outstd={std}", text=text)
