"""Metrics of pictures and networks with a tiny detector: in any number of processes, killed and gone on with."""

import dataclasses
import json
import re
import socket
from unittest import mock

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from jax_edm2.converter.drawing_request import DrawRequest
from jax_edm2.converter.errors import ConverterError, UsageError
from jax_edm2.converter.feature_statistics import read_statistics, write_statistics
from jax_edm2.converter.metrics import measuring
from jax_edm2.converter.metrics.measuring import Watch
from jax_edm2.converter.metrics.request import (
    CalcRequest,
    Detection,
    GenRequest,
    MetricsError,
    RefRequest,
    Stopped,
    SweepRequest,
)
from jax_edm2.converter.metrics.run import calc, gen, reference, sweep
from jax_edm2.evaluation import Statistics
from jax_edm2.training.dataset import DatasetError
from tests.support import children
from tests.support.datasets import small_dataset, write_dataset
from tests.support.detectors import TINY, tiny_detector

DINO = Detection(metrics=("fd_dinov2",), batch=8)


@pytest.fixture(autouse=True)
def tiny():
    with mock.patch.object(measuring, "find_detector", tiny_detector):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data") / "data.zip", count=150)


@pytest.fixture
def ref(data, tmp_path):
    reference(RefRequest(data=data, dest=tmp_path / "ref.pkl", detection=DINO))
    return str(tmp_path / "ref.pkl")


def same(one: Statistics, other: Statistics, limit=1e-12):
    return one.count == other.count and all(
        np.linalg.norm(a - b) <= limit * np.linalg.norm(a)
        for a, b in ((one.mean, other.mean), (one.covariance, other.covariance))
    )


def fd(path) -> Statistics:
    return read_statistics(path)["fd_dinov2"]


def test_a_dataset_beside_itself(data, ref, tmp_path):
    report = calc(CalcRequest(images=data, ref=ref, num=150, detection=DINO))
    assert report.best["fd_dinov2"] == pytest.approx(0, abs=1e-6)
    half = calc(CalcRequest(images=data, ref=ref, num=75, seed=3, detection=DINO))
    assert half.best["fd_dinov2"] > 0.01
    assert json.loads(json.dumps(half.to_json()))["results"][0]["seed"] == 3
    one, other = (calc(CalcRequest(images=data, ref=ref, num=75, seed=seed, detection=DINO)).best for seed in (3, 4))
    assert one == half.best != other


def test_a_folder_of_many_kinds_of_pictures(ref, tmp_path):
    """Grey pictures are three alike; the order does not matter."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    for number, picture in enumerate(pixels):
        folder = tmp_path / "images" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(folder / f"{number}.{'png' if number % 2 else 'bmp'}")
    write_dataset(tmp_path / "rgb.zip", np.repeat(pixels[:, None], 3, axis=1))
    found = [
        calc(CalcRequest(images=tmp_path / name, ref=ref, num=40, detection=DINO)).best["fd_dinov2"]
        for name in ("images", "rgb.zip")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize(("devices", "processes"), [(2, 1), (8, 1), (1, 2)])
def test_any_number_of_devices_and_processes(data, tmp_path, devices, processes):
    """The same moments to 1e-12: 150 pictures in batches that they do not fill."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    running = []
    for number in range(processes):
        cluster = (where, processes, number) if processes > 1 else None
        arguments = (str(data), str(tmp_path / "many.pkl"), str(tmp_path / "progress"), devices, cluster)
        running.append(children.start(children.reference, *arguments))
    reference(RefRequest(data=data, dest=tmp_path / "one.pkl", detection=DINO))
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert same(fd(tmp_path / "many.pkl"), fd(tmp_path / "one.pkl"))
    assert [path.suffix for path in (tmp_path / "progress").iterdir()] == [".pkl"]


def test_killed_at_any_moment(data, tmp_path):
    """The same command goes on, and ends with the same moments; `make metrics` kills more."""
    arguments = (str(data), str(tmp_path / "killed.pkl"), str(tmp_path / "progress"))
    longest = children.duration(children.reference, (*arguments[:1], str(tmp_path / "whole.pkl"), str(tmp_path / "p")))
    kills = sum(children.kill_at_random(children.reference, arguments, longest, seed) for seed in range(6))
    assert kills >= 2
    process = children.start(children.reference, *arguments)
    process.join()
    assert process.exitcode == 0
    assert same(fd(tmp_path / "killed.pkl"), fd(tmp_path / "whole.pkl"))


def test_stopped_and_gone_on_with(data, tmp_path, ref):
    """What is done is kept, and not done again; nothing is left but the statistics."""
    kept = dataclasses.replace(DINO, resume=tmp_path / "progress")
    request = CalcRequest(images=data, ref=ref, num=140, detection=kept)
    asked, told = iter([False, False, True]), []
    with pytest.raises(Stopped, match=r"[1-9]\d* pictures are done, in .*progress"):
        calc(request, Watch(stop=lambda: next(asked)))
    (part,) = (tmp_path / "progress").iterdir()
    assert part.name.endswith(".0-of-1.safetensors")
    report = calc(request, Watch(progress=_told(told)))
    assert sum(told) == 140
    assert told[0] > 0
    assert report.best == calc(dataclasses.replace(request, detection=DINO)).best
    (whole,) = (tmp_path / "progress").iterdir()
    assert fd(whole).count == 140
    told.clear()
    assert calc(request, Watch(progress=_told(told))).best == report.best
    assert told == []


def _told(told):
    from contextlib import contextmanager

    @contextmanager
    def progress(what, total):
        yield told.append

    return progress


def test_progress_that_is_damaged(data, tmp_path, ref):
    kept = dataclasses.replace(DINO, resume=tmp_path / "progress")
    request = CalcRequest(images=data, ref=ref, num=140, detection=kept)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        calc(request, Watch(stop=lambda: next(asked)))
    (part,) = (tmp_path / "progress").iterdir()
    whole = part.read_bytes()
    for damaged, text in (
        (whole[:-8], "is no safetensors file"),
        (re.sub(rb'"done":"\d', b'"done":"9', whole), "and its moments are not; remove it"),
        (whole.replace(b"fd_dinov2", b"fd_dinov3"), "holds other moments than these"),
        (whole[:-8] + np.float64(np.nan).tobytes(), "are no moments of 32 features"),
    ):
        part.write_bytes(damaged)
        with pytest.raises(MetricsError, match=text) as caught:
            calc(request)
        assert str(caught.value).startswith(str(part))


def test_a_network(tiny_checkpoint, ref, tmp_path):
    """The pictures are those that edm2-sample writes, and of several seeds the least counts."""
    from jax_edm2.converter.sample import SampleRequest, sample

    options = {"net": str(tiny_checkpoint), "num_steps": 2, "rng": "jax", "batch": 16}
    sample(SampleRequest(tmp_path / "out", range(40, 80), **options))
    wanted = calc(CalcRequest(images=tmp_path / "out", ref=ref, num=40, detection=DINO)).best["fd_dinov2"]
    lines = []
    request = GenRequest(draw=DrawRequest(**options), ref=ref, num=30, repeats=2, detection=DINO)
    gen(request, Watch(warn=lines.append))
    assert len(lines) == 1  # and not one for each of the repeats
    report = gen(dataclasses.replace(request, num=40))
    values = [each.scores["fd_dinov2"].value for each in report.results]
    assert values[1] == pytest.approx(wanted, rel=1e-9)
    assert report.best["fd_dinov2"] == min(values)
    assert [each.pictures["seed"] for each in report.results] == [0, 40]
    assert report.to_json()["about"]["network"]["name"] == tiny_checkpoint.name


def test_a_sweep(tmp_path, ref, tiny_pkl, tiny_guide_pkl):
    """Over two lengths and two weights; interrupted, it goes on; its rows are those of gen."""
    import shutil

    indir = tmp_path / "snapshots"
    indir.mkdir()
    for name, source in (("0000262-0.050", tiny_pkl), ("0000262-0.100", tiny_guide_pkl)):
        shutil.copy(source, indir / f"tiny-{name}.pkl")
    draw = DrawRequest(num_steps=1, rng="jax", gnet=str(tiny_guide_pkl), batch=16)
    request = SweepRequest(
        indir=indir, outdir=tmp_path / "sweep", outstd=(0.05, 0.08), draw=draw, ref=ref, guidance=(1.0, 2.0), num=16,
        detection=DINO,
    )  # fmt: skip
    asked = iter([False] * 2 + [True] * 9)
    with pytest.raises(Stopped):
        sweep(request, Watch(stop=lambda: next(asked), warn=lambda line: None))
    found = sweep(request, Watch(warn=lambda line: None))
    rows = found["results"]
    assert [(row["std"], row["guidance"]) for row in rows] == [(0.05, 1), (0.08, 1), (0.05, 2), (0.08, 2)]
    assert len({row["fd_dinov2"]["value"] for row in rows}) == 4
    assert json.loads((tmp_path / "sweep" / "results.json").read_text()) == rows
    with PIL.Image.open(tmp_path / "sweep" / "sweep.png") as picture:
        assert picture.size == (720, 540)
    average = next((tmp_path / "sweep" / "averages").glob("*-0.080.safetensors"))
    alone = dataclasses.replace(draw, net=str(average), guidance=2.0)
    again = gen(GenRequest(draw=alone, ref=ref, num=16, detection=DINO), Watch(warn=lambda line: None))
    assert again.best["fd_dinov2"] == rows[3]["fd_dinov2"]["value"]
    with pytest.raises(UsageError, match="needs a guiding network"):
        sweep(dataclasses.replace(request, draw=DrawRequest()))


def test_what_is_refused(data, tmp_path, ref):
    latents = write_dataset(tmp_path / "latents.zip", np.zeros((4, 8, 8, 8), np.float32))
    four = write_dataset(tmp_path / "rgba.zip", np.zeros((4, 4, 8, 8), np.uint8))
    one = write_dataset(tmp_path / "one.zip", np.zeros((1, 3, 8, 8), np.uint8))
    other = tmp_path / "other.pkl"
    write_statistics(other, {"fd_dinov2": Statistics(np.zeros(3), np.eye(3), 10)})
    for request, kind, text in (
        ({"images": latents}, DatasetError, "edm2-dataset decode makes pictures"),
        ({"images": four}, DatasetError, r"holds uint8 \[4, 8, 8\], and no RGB or grey pictures"),
        ({"images": one}, DatasetError, "has one picture"),
        ({"images": tmp_path / "nothing"}, OSError, "nothing"),
        ({"num": 151}, MetricsError, "has 150 pictures, and 151 are wanted: --num takes fewer"),
        ({"ref": str(tmp_path / "nothing.pkl")}, ConverterError, "there is no such file"),
        ({"ref": str(other)}, ConverterError, "statistics of 32 and of 3 features have no distance"),
        ({"detection": Detection(metrics=("fid",))}, MetricsError, "has statistics of fd_dinov2, and not of fid"),
    ):
        with pytest.raises(kind, match=text):
            calc(CalcRequest(**{"images": data, "ref": ref, "num": 2, "detection": DINO, **request}))
    with pytest.raises(FileExistsError, match="is there already"):
        reference(RefRequest(data=data, dest=other, detection=DINO))
    for metrics in ((), ("fid", "fid"), ("is",)):
        with pytest.raises(UsageError, match="--metrics"):
            Detection(metrics=metrics)


def test_features_that_are_not_finite(data, ref, tmp_path):
    found = tiny_detector("fd_dinov2", None, None)
    broken = dataclasses.replace(found.detector, features=lambda _, x: jnp.full((len(x), TINY.width), jnp.nan))
    found = dataclasses.replace(found, detector=broken)
    request = CalcRequest(images=data, ref=ref, num=20, detection=DINO)
    with (
        mock.patch.object(measuring, "find_detector", return_value=found),
        pytest.raises(MetricsError, match=r"^data.zip: features have values that are not finite"),
    ):
        calc(request)


def test_what_is_said(data, tmp_path, ref):
    lines = []
    calc(CalcRequest(images=data, ref=ref, num=20, detection=Detection(batch=8)), Watch(warn=lines.append))
    assert "has no statistics of fid, which is left out" in lines[0]
    assert lines[1] == f"20 pictures do not span the {TINY.width} features of fd_dinov2: it is far too large"
