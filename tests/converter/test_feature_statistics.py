"""Feature statistics in NVlabs' files: read as numpy and pickle write them, written as they read them; and refused."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.feature_statistics import StatisticsError, read_statistics, write_statistics
from jax_edm2.evaluation import Moments, Statistics, frechet_distance


def statistics(size=5, count=50, seed=0):
    moments = Moments(size)
    moments.add(np.random.default_rng(seed).standard_normal((count, size)))
    return moments.statistics()


ONE, OTHER = statistics(), statistics(3)
CONTENT = {"num_images": 50, "fid": {"mu": ONE.mean, "sigma": ONE.covariance}}


def same(one: Statistics, other: Statistics):
    return np.array_equal(one.mean, other.mean) and np.array_equal(one.covariance, other.covariance)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_what_pickle_writes_is_read(tmp_path, protocol):
    path = tmp_path / "stats.pkl"
    path.write_bytes(pickle.dumps(CONTENT | {"fd_dinov2": {"mu": OTHER.mean, "sigma": OTHER.covariance}}, protocol))
    found = read_statistics(path)
    assert list(found) == ["fid", "fd_dinov2"]
    assert same(found["fid"], ONE)
    assert same(found["fd_dinov2"], OTHER)
    assert found["fid"].count == 50
    assert frechet_distance(found["fid"], ONE).value < 1e-12


def test_what_is_written_pickle_reads(tmp_path):
    path = tmp_path / "stats.pkl"
    write_statistics(path, {"fid": ONE, "fd_dinov2": OTHER})
    content = pickle.loads(path.read_bytes())  # which we have written
    assert content["num_images"] == 50
    assert np.array_equal(content["fid"]["mu"], ONE.mean)
    assert content["fd_dinov2"]["sigma"].dtype == np.float64
    assert same(read_statistics(path)["fd_dinov2"], OTHER)
    with pytest.raises(FileExistsError):
        write_statistics(path, {"fid": ONE})
    for found in ({}, {"fid": ONE, "fd_dinov2": statistics(3, 60)}, {"fid": Statistics(ONE.mean, ONE.covariance)}):
        with pytest.raises(StatisticsError, match="are of the same images"):
            write_statistics(path, found, overwrite=True)
    assert same(read_statistics(path)["fid"], ONE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "stats.npz", mu=ONE.mean, sigma=ONE.covariance)
    found = read_statistics(tmp_path / "stats.npz")
    assert list(found) == ["fid"]
    assert same(found["fid"], ONE)
    assert found["fid"].count is None


def pickled(**changes):
    return pickle.dumps({**CONTENT, **changes}, 4)


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(value):
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def huge(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil",)


def indefinite(size):
    matrix = np.eye(size)
    matrix[0, 1] = 1.0
    return matrix


MU, SIGMA = npy(ONE.mean), npy(ONE.covariance)
BAD = {
    "nothing": (b"", "breaks off at byte 0"),
    "text": (b"mu = 3, sigma = 4\n" * 10, "stats: "),
    "another class": (pickle.dumps({**CONTENT, "fid": Evil()}, 4), "system"),
    "cut": (pickled()[:-40], "stats: "),
    "more behind it": (pickled() + b"more", "4 bytes follow"),
    "a list": (pickle.dumps([1, 2], 4), "has no dictionary of metrics"),
    "a hundred metrics": (pickled(**{f"m{i}": CONTENT["fid"] for i in range(100)}), "has no dictionary of metrics"),
    "no metric": (pickle.dumps({"num_images": 50}, 4), "statistics of no metric"),
    "no sigma": (pickled(fid={"mu": ONE.mean}), "'fid' is not mu and sigma"),
    "a number for mu": (pickled(fid={"mu": 3.0, "sigma": ONE.covariance}), "'fid.mu' is no array"),
    "float32": (pickled(fid={"mu": ONE.mean.astype("f4"), "sigma": ONE.covariance}), "not float64"),
    "three axes": (pickled(fid={"mu": ONE.mean, "sigma": ONE.covariance[None]}), "not float64"),
    "9,000 features": (pickled(fid={"mu": np.zeros(9000), "sigma": np.zeros((1, 1))}), "8,192 features at most"),
    "other sizes": (pickled(fid={"mu": ONE.mean[:4], "sigma": ONE.covariance}), r"\[D\] and \[D, D\]"),
    "NaN": (pickled(fid={"mu": ONE.mean * np.nan, "sigma": ONE.covariance}), "not finite"),
    "not symmetric": (pickled(fid={"mu": ONE.mean, "sigma": indefinite(5)}), "not symmetric"),
    "one image": (pickled(num_images=1), "num_images is 1"),
    "10^30 images": (pickled(num_images=10**30), "num_images is an integer of 100 bits"),
    "images in words": (pickled(num_images="many"), "num_images is 'many'"),
    "a zip of nothing": (npz(), "has 0 arrays mu"),
    "an npz without sigma": (npz(mu=MU), "has 0 arrays sigma"),
    "an npz of objects": (npz(mu=npy(np.array([{}], object)), sigma=SIGMA), r"mu is '\|O'"),
    "an npz of integers": (npz(mu=npy(np.arange(5)), sigma=SIGMA), "not float64"),
    "an npz that says more": (npz(mu=huge((8000,)), sigma=SIGMA), r"mu says \[8000\], and has 0 bytes"),
    "an npz of 2^40 values": (npz(mu=MU, sigma=huge((2**20, 2**20))), "and has 0 bytes"),
    "an npz of a gigabyte": (npz(mu=bytes(2**20), sigma=SIGMA), "and may have"),
    "an npz of noise": (npz(mu=b"noise" * 9, sigma=SIGMA), "mu is no array that can be read"),
    "an npz that is cut": (npz(mu=MU, sigma=SIGMA)[:-30], "is no .npz that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(tmp_path, name, capfd):
    content, text = BAD[name]
    path = tmp_path / "stats"
    path.write_bytes(content)
    with pytest.raises(StatisticsError, match=text) as error:
        read_statistics(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).isprintable()
    assert capfd.readouterr().out == ""


def test_no_file(tmp_path):
    for path, text in (
        (tmp_path / "none.pkl", "there is no such file"),
        (tmp_path, "is a directory; give the path of feature statistics"),
    ):
        with pytest.raises(ConverterError, match=text):
            read_statistics(path)
