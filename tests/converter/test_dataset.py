"""Datasets made of pictures: what is cut and scaled, names and order, labels; latents, and pictures of these."""

import io
import json
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL.Image import Resampling

from jax_edm2.converter.dataset import transforms
from jax_edm2.converter.dataset.convert import ConvertRequest, convert
from jax_edm2.converter.dataset.latents import DecodeRequest, EncodeRequest, decode, encode, on_all_devices
from jax_edm2.converter.dataset.source import DatasetToolError
from jax_edm2.converter.errors import UsageError
from jax_edm2.record import Encoder
from jax_edm2.training import ImageDataset
from jax_edm2.training import encode as drawn
from tests.jax_edm2.test_vae import SMALL, torch_vae

SIDES = st.integers(1, 70)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def scaled(pixels, size, how=Resampling.LANCZOS):
    """With Pillow's own filters, which are not ours to check."""
    return np.asarray(PIL.Image.fromarray(pixels).resize(size, how))


def applied(name, resolution, pixels):
    image = transforms.transform_of(name, resolution)(PIL.Image.fromarray(pixels))
    return None if image is None else np.asarray(image)


# Transforms


def test_without_a_transform_all_of_a_picture_is_scaled():
    pixels = noise(50, 30)
    assert np.array_equal(applied(None, None, pixels), pixels)
    assert np.array_equal(applied(None, (50, 30), pixels), pixels)
    assert np.array_equal(applied(None, (16, 16), pixels), scaled(pixels, (16, 16)))


@given(SIDES, SIDES)
def test_center_crop(width, height):
    """The largest square; what is left over is the same on both sides, or one less to the left and above."""
    pixels, side = noise(width, height), min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = pixels[top : top + side, left : left + side]
    assert np.array_equal(applied("center-crop", (16, 16), pixels), scaled(square, (16, 16)))
    assert np.array_equal(applied("center-crop", (side, side), pixels), square)


def test_center_crop_wide():
    pixels = noise(128, 128)
    found = applied("center-crop-wide", (64, 36), pixels)
    assert found.shape == (64, 64, 3)
    assert not found[:14].any()  # black above and below
    assert not found[50:].any()
    assert np.array_equal(found[14:50], scaled(pixels[32:96], (64, 36)))
    pixels = noise(64, 45)  # of which 9 rows are too many
    assert np.array_equal(applied("center-crop-wide", (64, 45), pixels)[9:54], pixels)
    for width, height in ((63, 400), (64, 35), (200, 100)):  # too narrow; too low; 32 rows would be kept
        assert applied("center-crop-wide", (64, 36), noise(width, height)) is None


def test_center_crop_dhariwal():
    """By numbers worked out by hand: halved as long as both sides are at least twice as long, scaled, cut."""
    pixels = noise(400, 300)
    halved = scaled(scaled(pixels, (200, 150), Resampling.BOX), (100, 75), Resampling.BOX)
    expected = scaled(halved, (85, 64), Resampling.BICUBIC)[:, 10:74]  # 100 * 64 / 75 = 85.3
    assert np.array_equal(applied("center-crop-dhariwal", (64, 64), pixels), expected)
    small = noise(20, 33)  # which is enlarged
    expected = scaled(small, (64, 106), Resampling.BICUBIC)[21:85]  # 33 * 64 / 20 = 105.6
    assert np.array_equal(applied("center-crop-dhariwal", (64, 64), small), expected)
    whole = noise(64, 64).reshape(32, 2, 32, 2, 3).astype(int)  # pairs of rows and columns
    expected = ((whole.sum(3) + 1) // 2).sum(1) + 1 >> 1  # means of rows, then of columns, both rounded
    found = applied("center-crop-dhariwal", (32, 32), whole.reshape(64, 64, 3).astype(np.uint8))
    assert np.array_equal(found, expected)


@given(SIDES, SIDES, st.sampled_from(transforms.TRANSFORMS))
def test_every_size_becomes_what_is_asked_for(width, height, name):
    found = applied(name, (32, 18) if name == "center-crop-wide" else (32, 32), noise(width, height))
    assert found is None or found.shape == (32, 32, 3)
    assert (found is None) <= (name == "center-crop-wide")


# Archives


def files(path):
    """name: content, in the order of the archive."""
    if path.suffix != ".zip":
        return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    with zipfile.ZipFile(path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        return {name: archive.read(name) for name in archive.namelist()}


def pixels_of(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def save(path, pixels, mode="RGB", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).convert(mode).save(path, **more)


@pytest.fixture
def folder(tmp_path):
    """Pictures of many kinds, in folders, whose order is that of their full names."""
    for number, name in enumerate(("b/2.png", "b/10.JPG", "a/x.gif", "c.png", "B/1.webp", "b-/0.bmp", "a/y/z.tif")):
        save(tmp_path / "in" / name, noise(24, 20, number), "P" if name.endswith("gif") else "RGB")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


ORDER = ["B/1.webp", "a/x.gif", "a/y/z.tif", "b-/0.bmp", "b/10.JPG", "b/2.png", "c.png"]
CLASSES = [1, 2, 2, 4, 3, 3, 0]  # '' < B < a < b < b-, though b-/0.bmp < b/10.JPG


@pytest.mark.parametrize("dest", ["new/out.zip", "new/out"])
def test_names_order_and_labels(folder, tmp_path, dest):
    told = []
    report = convert(ConvertRequest(folder, tmp_path / dest, "center-crop", (16, 16)), warn=told.append)
    found = files(tmp_path / dest)
    names = [f"00000/img{number:08d}.png" for number in range(7)]
    assert list(found) == [*names, "dataset.json"]
    assert json.loads(found["dataset.json"]) == {"labels": [list(pair) for pair in zip(names, CLASSES, strict=True)]}
    for name, source in zip(names, ORDER, strict=True):
        with PIL.Image.open(folder / source) as image:
            expected = applied("center-crop", (16, 16), np.asarray(image.convert("RGB")))
        assert np.array_equal(pixels_of(found[name]), expected)
    assert (report.images, report.skipped, report.classes, report.shape, told) == (7, 0, 5, (3, 16, 16), [])
    dataset = ImageDataset(tmp_path / dest)
    assert (len(dataset), dataset.shape, dataset.label_dim) == (7, (3, 16, 16), 5)
    assert [int(label.argmax()) for _, label in (dataset[i] for i in range(7))] == CLASSES


def test_pictures_are_not_compressed_and_archives_are_reproducible(folder, tmp_path):
    request = ConvertRequest(folder, tmp_path / "a.zip", resolution=(16, 16), max_images=3)
    convert(request)
    convert(ConvertRequest(folder, tmp_path / "b.zip", resolution=(16, 16), max_images=3))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    found = files(tmp_path / "a.zip")
    assert len(found) == 4
    assert all(len(data) > 3 * 16 * 16 for name, data in found.items() if name.endswith("png"))
    with pytest.raises(FileExistsError, match=r"a\.zip exists"):
        convert(request)


def test_nothing_but_pixels_is_kept(tmp_path):
    """No colour profile, no transparency, no orientation that would turn the picture."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "in" / "a.png", noise(8, 8), icc_profile=b"profile", exif=exif, dpi=(72, 72))
    convert(ConvertRequest(tmp_path / "in", tmp_path / "out.zip"))
    data = files(tmp_path / "out.zip")["00000/img00000000.png"]
    assert PIL.Image.open(io.BytesIO(data)).info == {}
    assert np.array_equal(pixels_of(data), noise(8, 8))


def packed(path, names, labels):
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            stream = io.BytesIO()
            PIL.Image.fromarray(noise(*(8, 8) if number % 2 else (4, 8), number)).save(stream, "PNG")
            archive.writestr(name, stream.getvalue())
        if labels is not None:
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


NAMES = ["z/1.png", "a/2.png", "m.png", "a/0.png"]  # sorted: a/0 a/2 m z/1


@pytest.mark.parametrize(
    ("labels", "expected", "warnings"),
    [
        (None, None, []),  # folders within a ZIP are no classes
        ([], None, []),
        ([[name, number] for number, name in enumerate(NAMES)], [3, 1, 2, 0], []),
        ([[name, 5] for name in NAMES[1:]], None, ["no label for 'z/1.png' and 0 others: none will be written"]),
        ([[name, 5] for name in [*NAMES, "gone.png"]], [5] * 4, ["labels of 1 files that are not there, as of 'gone"]),
    ],
)
def test_labels_of_an_archive(tmp_path, labels, expected, warnings):
    told = []
    source = packed(tmp_path / "in.zip", NAMES, labels)
    report = convert(ConvertRequest(source, tmp_path / "out.zip", resolution=(8, 8)), warn=told.append)
    found = json.loads(files(tmp_path / "out.zip")["dataset.json"])["labels"]
    assert (None if found is None else [label for _, label in found]) == expected
    assert report.classes == (max(expected) + 1 if expected else 0)
    assert len(told) == len(warnings)
    assert all(part in line for part, line in zip(warnings, told, strict=True))


def test_what_is_too_small_keeps_its_number(tmp_path):
    """As in NVlabs' archives; and a label that it alone lacks is not missed."""
    labels = [["a/0.png", 3], ["a/2.png", 1], ["z/1.png", 0]]
    source = packed(tmp_path / "in.zip", ["a/0.png", "a/2.png", "m.png", "z/1.png"], labels)  # a/0 and m are 4 wide
    report = convert(ConvertRequest(source, tmp_path / "out.zip", "center-crop-wide", (8, 8)), warn=lambda line: None)
    found = files(tmp_path / "out.zip")
    assert list(found) == ["00000/img00000001.png", "00000/img00000003.png", "dataset.json"]
    assert json.loads(found["dataset.json"]) == {"labels": [["00000/img00000001.png", 1], ["00000/img00000003.png", 0]]}
    assert (report.images, report.skipped, report.classes) == (2, 2, 2)


@pytest.mark.parametrize("broken", [0, 4, 6])
def test_nothing_is_left_of_a_failure(folder, tmp_path, broken):
    (folder / ORDER[broken]).write_bytes(b"x")
    for dest in ("new/out.zip", "new/er/out"):
        with pytest.raises(DatasetToolError, match=f"'{ORDER[broken]}' is no picture that can be read"):
            convert(ConvertRequest(folder, tmp_path / dest, resolution=(8, 8)))
        assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_taken(folder, tmp_path):
    (tmp_path / "out").mkdir()
    convert(ConvertRequest(folder, tmp_path / "out", resolution=(8, 8)))
    assert len(files(tmp_path / "out")) == 8


@pytest.mark.parametrize(
    ("transform", "resolution", "says"),
    [
        ("center-crop", None, "--transform center-crop needs --resolution"),
        ("middle", (8, 8), "must be one of center-crop, "),
        (None, (8, 16), "8x16: pictures must be square"),
        (None, (12, 12), "sides that are a power of two"),
        (None, (8192, 8192), "at most 4096"),
        ("center-crop-dhariwal", (64, 36), "64x36: pictures must be square"),
        ("center-crop-wide", (64, 65), "64x65: pictures must be wide"),
        ("center-crop-wide", (64, 0), "64x0: pictures must be wide"),
        (None, (0, 0), "0x0"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, transform, resolution, says):
    with pytest.raises(UsageError, match=says):
        ConvertRequest(tmp_path, tmp_path / "x.zip", transform, resolution)


# Latents


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """diffusers' VAE of a small size, and its folder."""
    folder = tmp_path_factory.mktemp("vae")
    made = torch_vae(**SMALL)
    made.save_pretrained(folder)
    return made, folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Five pictures of 16 x 16, of two classes."""
    folder = tmp_path_factory.mktemp("squares")
    for number in range(5):
        save(folder / f"{number % 2}/{number}.png", noise(16, 16, number))
    return folder


def arrays(path):
    return np.stack([np.load(io.BytesIO(data)) for name, data in files(path).items() if name.endswith(".npy")])


def test_latents_are_diffusers(vae, squares, tmp_path):
    """Means and standard deviations of pictures from 0 to 1, whatever the batch; what is made of them is trained on."""
    found = {}
    for batch in (1, 2, 64):
        path = tmp_path / f"{batch}.zip"
        report = encode(EncodeRequest(squares, path, str(vae[1]), batch=batch))
        assert (report.images, report.classes, report.shape) == (5, 2, (8, 4, 4))
        found[batch] = arrays(path)
        assert np.abs(found[batch] - found[1]).max() <= 1e-5 * np.abs(found[1]).max()
    names = [f"00000/img-mean-std-{number:08d}.npy" for number in range(5)]
    assert list(files(path)) == [*names, "dataset.json"]
    labels = json.loads(files(path)["dataset.json"])["labels"]
    assert labels == [[name, number] for name, number in zip(names, [0, 0, 0, 1, 1], strict=True)]
    pixels = np.stack([pixels_of(data) for data in files(squares).values()]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        truth = vae[0].double().encode(torch.from_numpy(pixels / 255))["latent_dist"]
    for ours, theirs in zip(np.split(found[2], 2, axis=1), (truth.mean, truth.std), strict=True):
        assert np.linalg.norm(ours - theirs.numpy()) / np.linalg.norm(theirs.numpy()) < 3e-6  # measured: 1.0e-6
    dataset = ImageDataset(path)
    assert (len(dataset), dataset.shape, dataset.dtype, dataset.label_dim) == (5, (8, 4, 4), np.float32, 2)
    batch = np.stack([dataset[number][0] for number in range(5)])
    trained_on = drawn(Encoder.of_latents(), batch, jax.random.key(0))
    assert (trained_on.shape, trained_on.dtype) == ((5, 4, 4, 4), np.float32)


def test_decoding_draws_around_the_means(vae, squares, tmp_path):
    """Without spread, as diffusers decodes the means; with it, by seed and number alone."""
    encode(EncodeRequest(squares, tmp_path / "in.zip", str(vae[1])))
    means = arrays(tmp_path / "in.zip")
    means[:, 4:] = 0
    (tmp_path / "means").mkdir()
    for number, array in enumerate(means):
        np.save(tmp_path / "means" / f"{number}.npy", array)

    def decoded(source, name, **more):
        report = decode(DecodeRequest(tmp_path / source, tmp_path / name, str(vae[1]), **more))
        assert report.shape == (3, 16, 16)
        found = files(tmp_path / name)
        assert next(iter(found)) == "00000/img00000000.png"
        return np.stack([pixels_of(data) for key, data in found.items() if key.endswith("png")])

    plain = decoded("means", "a.zip").transpose(0, 3, 1, 2)
    with torch.no_grad():
        theirs = vae[0].double().decode(torch.from_numpy(means[:, :4]).double())["sample"].clamp(0, 1).mul(255)
    assert np.abs(plain.astype(int) - theirs.numpy().astype(np.uint8)).max() <= 1
    first = decoded("in.zip", "b.zip", batch=1)
    assert np.abs(first.astype(int) - decoded("in.zip", "c.zip", batch=3)).max() <= 1
    assert np.array_equal(first[:2], decoded("in.zip", "d", max_images=2, batch=1))
    assert not np.array_equal(first, decoded("in.zip", "e.zip", seed=1))
    assert json.loads(files(tmp_path / "b.zip")["dataset.json"])["labels"][4] == ["00000/img00000004.png", 1]


@given(st.integers(1, 9), st.integers(1, 4))
def test_every_part_is_computed_once_and_in_order(count, batch):
    def function(params, x, numbers):
        return params * x + numbers[:, None].astype(x.dtype)

    parts = ((np.full((2,), number, np.float32), np.int32(number)) for number in range(count))
    found = list(on_all_devices(function, np.float32(10), parts, batch))
    assert [array.tolist() for array in found] == [[11.0 * number] * 2 for number in range(count)]
