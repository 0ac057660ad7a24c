"""Datasets as NVlabs' dataset_tool.py writes them: read, shuffled by seed and position, refused by name."""

import io
import json
import os
import pickle
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest

from jax_edm2.dataset_files import open_files
from jax_edm2.record import Encoder
from jax_edm2.training import DatasetError, ImageDataset, batches, encode

COUNT = 10


def png(value, size=8, mode="RGB", kind="PNG"):
    stream = io.BytesIO()
    PIL.Image.new(mode, (size, size), value if mode != "L" else value[0]).save(stream, kind)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def latent(number):
    return np.random.default_rng(number).standard_normal((8, 4, 4)).astype(np.float32)


def name(number, suffix="png"):
    return f"00000/img{number:08d}.{suffix}"


def labelled(names, classes):
    return json.dumps({"labels": [[n, c] for n, c in zip(names, classes, strict=True)]}).encode()


def pictures():
    """Files by name: picture i is of colour (i, 2 i, 0), and of class i modulo 3."""
    files = {name(i): png((i, 2 * i, 0)) for i in range(COUNT)}
    return {**files, "dataset.json": labelled(files, [i % 3 for i in range(COUNT)])}


def written(path, files):
    """A ZIP, or a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data)
        return path
    for member, data in files.items():
        (path / member).parent.mkdir(parents=True, exist_ok=True)
        (path / member).write_bytes(data)
    return path


@pytest.mark.parametrize("where", ["x.zip", "x"])
def test_pictures(tmp_path, where):
    dataset = ImageDataset(written(tmp_path / where, pictures()))
    assert (len(dataset), dataset.shape, dataset.dtype, dataset.label_dim) == (COUNT, (3, 8, 8), np.uint8, 3)
    for i, (image, label) in enumerate(dataset[n] for n in range(COUNT)):
        assert image[:, 3, 5].tolist() == [i, 2 * i, 0]
        assert label.tolist() == np.eye(3)[i % 3].tolist()
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again[4][0], dataset[4][0])
    with pytest.raises(IndexError):
        dataset[COUNT]


def test_latents_and_options(tmp_path):
    files = {name(i, "npy"): npy(latent(i)) for i in range(COUNT)}
    path = written(tmp_path / "x.zip", files)
    dataset = ImageDataset(path)
    assert (dataset.shape, dataset.dtype, dataset.label_dim) == ((8, 4, 4), np.float32, 0)
    assert np.array_equal(dataset[3][0], latent(3))
    flipped = ImageDataset(path, flip=True)
    assert len(flipped) == 2 * COUNT
    assert np.array_equal(flipped[COUNT + 3][0], latent(3)[:, :, ::-1])
    chosen = np.arange(COUNT)
    np.random.RandomState(5).shuffle(chosen)  # what NVlabs' Dataset does
    few = ImageDataset(path, most=4, seed=5)
    assert len(few) == 4
    assert [np.array_equal(few[i][0], latent(n)) for i, n in enumerate(sorted(chosen[:4]))] == [True] * 4
    assert ImageDataset(written(tmp_path / "y.zip", pictures()), labels=False).label_dim == 0
    gray = {name(i): png((i,), mode="L") for i in range(2)}
    assert ImageDataset(written(tmp_path / "z.zip", {**gray, "dataset.json": b'{"labels": null}'})).shape == (1, 8, 8)


def order(dataset, count, **more):
    found = []
    for images, _ in batches(dataset, 4, **more):
        found += [int(image[0, 0, 0]) for image in images]
        if len(found) >= count:
            break
    return found[:count]


def test_the_order_is_of_seed_and_position(tmp_path):
    dataset = ImageDataset(written(tmp_path / "x.zip", pictures()))
    first = order(dataset, 40)
    for start in range(0, 40, 10):
        assert sorted(first[start : start + 10]) == list(range(COUNT))  # every image in every pass
    assert first[:10] != first[10:20]
    assert order(dataset, 40, threads=1) == first
    assert order(dataset, 28, start=12) == first[12:]
    assert order(dataset, 40, seed=1) != first
    parts = [order(dataset, 20, part=(i, 2)) for i in range(2)]
    assert [n for k in range(0, 20, 2) for part in parts for n in part[k : k + 2]] == first
    with pytest.raises(ValueError, match="does not divide into 3 parts"):
        batches(dataset, 4, part=(0, 3))
    assert order(dataset, 20, start=6) == order(dataset, 26)[6:]  # of a training whose batches were of another size
    with pytest.raises(ValueError, match="from image -2 on does not divide"):
        batches(dataset, 4, start=-2)


def test_encoders(tmp_path):
    key = jax.random.key(0)
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 3, 1, 1)
    assert np.asarray(encode(None, pixels, key)).ravel() == pytest.approx([-1, -0.6, 1])
    encoder = Encoder.of_latents()
    mean = np.float32([5.81, 3.25, 0.12, -2.15])[:, None, None] * np.ones((1, 4, 128, 128), np.float32)
    std = np.float32([4.17, 4.62, 3.71, 3.28])[:, None, None] * np.ones_like(mean)
    drawn = np.asarray(encode(encoder, np.concatenate([mean, std], axis=1), key))
    assert abs(drawn.mean()) < 0.01
    assert drawn.std(axis=(0, 2, 3)) == pytest.approx(0.5, rel=0.02)
    other = encode(encoder, np.concatenate([mean, std], axis=1), jax.random.key(1))
    assert not np.array_equal(drawn, other)
    with pytest.raises(ValueError, match="latents are float32 of 8 channels, means and standard deviations, and these"):
        encode(encoder, pixels, key)
    with pytest.raises(ValueError, match="pixels are uint8, and these are float32"):
        encode(None, mean, key)


def header(shape, descr="'<f4'", fortran="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


# fmt: off
BROKEN = {
    "no images": ({"readme.txt": b""}, "holds no images"),
    "another size": ({name(COUNT): png((1, 1, 1), size=16)}, "is a picture of 16 x 16, not 8 x 8"),
    "another mode": ({name(COUNT): png((1,), mode="L")}, r"is \[1, 8, 8\], and '00000/img00000000.png' is \[3, 8, 8\]"),
    "a palette": ({name(COUNT): png((1, 1, 1), mode="P")}, "is a picture of mode 'P'"),
    "no picture": ({name(COUNT): b"\x89PNG nothing"}, "is no picture that can be read"),
    "half a picture": ({name(COUNT): pictures()[name(1)][:45]}, "is no picture that can be read"),
    "no array": ({name(COUNT, "npy"): b"junk"}, "is no NPY file that can be read"),
    "objects": ({name(COUNT, "npy"): header("(3, 8, 8)", "'|O'") + b"x" * 192}, r"holds '\|O', not float32"),
    "fortran": ({name(COUNT, "npy"): header("(3, 8, 8)", fortran="True") + bytes(768)}, "in Fortran order"),
    "a huge shape": ({name(COUNT, "npy"): header("(3, 4096, 4096)")}, "says 201326592 bytes of values, and has 0"),
    "a flat array": ({name(COUNT, "npy"): npy(np.zeros(192, "<f4"))}, r"is \[192\], not \[channels, height, width\]"),
    "not finite": ({name(COUNT, "npy"): npy(np.full((3, 8, 8), np.inf, np.float32))}, "values that are not finite"),
    "another dtype": ({name(COUNT, "npy"): npy(np.zeros((3, 8, 8), np.float32))}, "is float32, and '.*png' is uint8"),
    "no JSON": ({"dataset.json": b"{"}, "'dataset.json' is no JSON"),
    "deep JSON": ({"dataset.json": b"[" * 100_000}, "'dataset.json' is no JSON"),
    "another JSON": ({"dataset.json": b'{"labels": 3}'}, r'must be {"labels": \[\["file name", class\]'),
    "a float": ({"dataset.json": b'{"labels": [["a", 1.5]]}'}, r'and has \["a", 1.5\]'),
    "a negative class": ({"dataset.json": b'{"labels": [["a", -1]]}'}, "says that 'a' is of class -1"),
    "twice": ({"dataset.json": b'{"labels": [["a", 1], ["a", 1]]}'}, "names 'a' twice"),
    "no label": ({"dataset.json": labelled([name(1)], [0])}, "has no label for '00000/img00000000.png' and 8 others"),
}
# fmt: on


def read_all(path):
    dataset = ImageDataset(path)
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("where", ["x.zip", "x"])
def test_refused_by_name(tmp_path, case, where):
    changes, message = BROKEN[case]
    files = changes if case == "no images" else {**pictures(), **changes}
    if not any(key.startswith("dataset") for key in changes):
        files.pop("dataset.json", None)
    with pytest.raises(DatasetError, match=message) as raised:
        read_all(written(tmp_path / where, files))
    assert str(raised.value).startswith(str(tmp_path / where))
    assert "\n" not in str(raised.value)


def test_what_is_in_a_folder(tmp_path):
    """Files alone: a pipe would never end. Folders that are linked to are followed on demand, and in no circle."""
    folder = written(tmp_path / "x", pictures())
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "z.png").write_bytes(png((1, 1, 1)))
    (folder / "linked").symlink_to(tmp_path / "y")
    os.mkfifo(folder / "pipe.png")
    assert len(ImageDataset(folder)) == COUNT
    assert open_files(folder, links=True).names == {*pictures(), "linked/z.png"}
    (tmp_path / "y" / "back").symlink_to(folder)
    with pytest.raises(DatasetError, match="'linked/back' is a link to a folder that it lies in"):
        open_files(folder, links=True)
    with pytest.raises(DatasetError, match=r"pipe\.png: is neither a folder nor a ZIP file"):
        ImageDataset(folder / "pipe.png")


def test_refused_archives(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK nothing")
    with pytest.raises(DatasetError, match="is no ZIP file that can be read"):
        ImageDataset(path)
    with pytest.raises(DatasetError, match=r"'\.\./escape\.png' is no name of a file in a dataset"):
        ImageDataset(written(tmp_path / "y.zip", {"../escape.png": png((1, 1, 1))}))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(70 * 2**20))
    with pytest.raises(DatasetError, match=r"'a\.png' has 73,400,320 bytes, and may have 67,108,864"):
        ImageDataset(tmp_path / "bomb.zip")
    data = bytearray(written(tmp_path / "z.zip", {"a.png": png((1, 1, 1))}).read_bytes())
    data[60] ^= 255
    (tmp_path / "z.zip").write_bytes(data)
    with pytest.raises(DatasetError, match=r"'a\.png' is broken: Bad CRC-32"):
        ImageDataset(tmp_path / "z.zip")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.png", png((1, 1, 1)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png((1, 1, 1)))
    with pytest.raises(DatasetError, match="two files in it have one name"):
        ImageDataset(tmp_path / "t.zip")
