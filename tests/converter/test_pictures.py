"""Files of pictures and arrays: whole or not there, and contact sheets of them."""

import errno
import os

import numpy as np
import pytest

from jax_edm2.converter.folders import Folder
from jax_edm2.converter.pictures import PictureError, contact_sheet


def test_arrays_that_are_torn(tmp_path):
    folder, array = Folder(tmp_path, suffix=".npy"), np.zeros((4, 8, 8), np.float32)
    for seed in range(6):
        folder.write(seed, array, {})
    assert folder.differences(0, (4, 8, 8), {}) == []
    assert folder.differences(0, (4, 8, 9), {}) is None
    data = folder.file(0).read_bytes()
    for broken in (b"", data[:-1], data + b"x", data[:50], data.replace(b"<f4", b"<i4"), b"\x93NUMPY" + bytes(200)):
        folder.file(0).write_bytes(broken)
        assert folder.differences(0, (4, 8, 8), {}) is None


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        folder.write(7, np.zeros((1, 8, 8), np.uint8), {})
    assert caught.value.filename == str(tmp_path / "000007.png")
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_cannot_be(tmp_path):
    with pytest.raises(PictureError, match="images of 2 channels cannot be PNG files"):
        Folder(tmp_path).write(1, np.zeros((2, 8, 8), np.uint8), {})
    for seed, size in ((1, 8), (2, 16)):
        Folder(tmp_path).write(seed, np.zeros((3, size, size), np.uint8), {})
    with pytest.raises(PictureError, match="2 kinds of pictures do not go on one sheet"):
        contact_sheet([tmp_path / "000001.png", tmp_path / "000002.png"], tmp_path / "grid.png")
    (tmp_path / "000003.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"000003.png: is no picture"):
        contact_sheet([tmp_path / "000003.png"], tmp_path / "grid.png")
