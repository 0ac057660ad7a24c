"""The detectors' weights in the files that people have: torch's, TorchScript's, NVlabs' pickles and safetensors."""

import os
import pickle
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy
import torch

from jax_edm2.converter import detectors
from jax_edm2.converter.detectors import DetectorError, find_detector, read_tensors
from jax_edm2.converter.errors import ConverterError
from jax_edm2.converter.sources import Fetching
from jax_edm2.evaluation import inception
from tests.support.detectors import TINY, as_nvlabs_has_it, vit_tensors, write_nvlabs_pickle


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """Inception with layers a tenth as wide, and a tiny transformer: all code that reads them is the same."""
    thin = []
    for layer in inception.layers():
        out, channels, *size = layer.shape
        thin.append(inception.Layer(layer.name, (out // 16, max(channels // 16, 3), *size), layer.stride))
    with (
        mock.patch.object(inception, "layers", return_value=thin),
        mock.patch("jax_edm2.evaluation.detectors.DINOv2", return_value=TINY),
    ):
        yield


@pytest.fixture(scope="module")
def tensors(narrow):
    rng = np.random.default_rng(0)
    found = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in inception.tensors().items()}
    return found | {"fc.weight": rng.standard_normal((8, 128)).astype(np.float32), "fc.bias": np.ones(8, np.float32)}


def state_dict(tensors):
    found = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    layers = [name for name in tensors if name.endswith("running_mean")]
    found |= {name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in layers}
    return found | {name.replace("running_mean", "weight"): torch.ones(len(tensors[name])) for name in layers}


def torch_file(path, tensors, **options):
    torch.save(state_dict(tensors), path, **options)


def script(path, tensors):
    torch.jit.script(as_nvlabs_has_it(tensors)).save(str(path))


WRITERS = {
    "zip.pth": torch_file,
    "legacy.pth": lambda path, tensors: torch_file(path, tensors, _use_new_zipfile_serialization=False),
    "twin.pt": script,
    "nvlabs.pkl": lambda path, tensors: write_nvlabs_pickle(path, as_nvlabs_has_it(tensors)),
    "ours.safetensors": lambda path, tensors: safetensors.numpy.save_file(tensors, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_inception_of_every_file(tmp_path, tensors, name):
    WRITERS[name](tmp_path / name, tensors)
    found = read_tensors(tmp_path / name, "fid")
    for each, value in tensors.items():
        np.testing.assert_array_equal(found[each], value)


def test_names_of_nvlabs():
    """Each of Inception's tensors has one, and no two are one tensor's."""
    assert len(set(detectors.NVLABS_NAMES.values())) == len(detectors.NVLABS_NAMES) == 4 * 94 + 2
    assert set(inception.tensors()) < set(detectors.NVLABS_NAMES.values())


def test_the_twin_is_compressed_code_and_plain_tensors(tmp_path, tensors):
    """What makes it a TorchScript, and why `members` takes compressed members there."""
    script(tmp_path / "twin.pt", tensors)
    with zipfile.ZipFile(tmp_path / "twin.pt") as archive:
        kinds = {info.filename.split("/")[1]: info.compress_type for info in archive.infolist() if info.file_size > 200}
    assert kinds["code"] == zipfile.ZIP_DEFLATED
    assert kinds["data"] == zipfile.ZIP_STORED


def test_dinov2(tmp_path):
    values = vit_tensors(TINY)
    torch.save({name: torch.from_numpy(value) for name, value in values.items()}, tmp_path / "dinov2.pth")
    found = read_tensors(tmp_path / "dinov2.pth", "fd_dinov2")
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_file_that_was_published(tmp_path, tensors):
    """It is fetched into the cache, and has to have the sha256 that its name begins to say."""
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch_file(path, tensors)
    with pytest.raises(DetectorError, match=r"its sha256 is \w{64}, which its name says begins with 6726825d"):
        find(path, f"http://host/{path.name}")
    assert find(path, "http://host/inception.pth").name == "http://host/inception.pth"


def find(path, url):
    """As if `url` brought `path`."""

    def fetch(self, _url, check, sha256=None):
        check(path)
        return path

    with (
        mock.patch.object(Fetching, "fetch", fetch),
        mock.patch("jax_edm2.evaluation.Detector.of"),
    ):
        return find_detector("fid", url, Fetching())


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil",)


def damaged(path, tensors):
    torch_file(path, tensors)
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(tensors["fc.weight"][0, :4]).tobytes())] ^= 1
    path.write_bytes(data)


def cut(path, tensors, writer=torch_file):
    writer(path, tensors)
    path.write_bytes(path.read_bytes()[:-100])


def without(name):
    return lambda path, tensors: torch_file(path, {key: value for key, value in tensors.items() if key != name})


def more(**values):
    return lambda path, tensors: torch.save(state_dict(tensors) | values, path)


def more_legacy(**values):
    def write(path, tensors):
        torch.save(state_dict(tensors) | values, path, _use_new_zipfile_serialization=False)

    return write


def evil_twin(path, tensors):
    """A class that is not of the file's own code."""
    script(path, tensors)
    with zipfile.ZipFile(path) as archive:
        found = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in found:
            archive.writestr(name, data.replace(b"c__torch__.tests.support.detectors\n", b"cposix\n"))


def compressed_tensors(path, tensors):
    script(path, tensors)
    with zipfile.ZipFile(path) as archive:
        found = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in found:
            archive.writestr(name, data)


def pickled(value):
    return lambda path, tensors: path.write_bytes(pickle.dumps(value, 4))


def changed_module(change):
    def write(path, tensors):
        module = as_nvlabs_has_it(tensors)
        change(module)
        write_nvlabs_pickle(path, module)

    return write


def nested(path, _tensors):
    module = torch.nn.Sequential()
    for _ in range(40):
        module = torch.nn.Sequential(module)
    write_nvlabs_pickle(path, module)


def fanned(path, _tensors):
    """A module that is there 10^15 times."""
    module = torch.nn.Sequential(torch.nn.Identity())
    for _ in range(7):
        module = torch.nn.Sequential(*[module] * 100)
    write_nvlabs_pickle(path, module)


SHARED = torch.zeros(10)
BAD = {
    "nothing": (lambda path, _: path.write_bytes(b""), "is no file of torch .*: it is empty"),
    "a web page": (lambda path, _: path.write_bytes(b"<html>" * 50), "it begins with b'<html>"),
    "text": (lambda path, _: path.write_bytes(b"weights\n" * 50), "is no file of torch or NVlabs"),
    "no such file": (lambda path, _: None, "there is no such file"),
    "a folder": (lambda path, _: path.mkdir(), "is a directory"),
    "a FIFO": (lambda path, _: os.mkfifo(path), "not a regular file"),
    "a torch file, cut": (cut, "does not end as one"),
    "a bit flipped": (damaged, "is damaged: fc.weight does not have its checksum"),
    "an older one, cut": (lambda path, t: cut(path, t, WRITERS["legacy.pth"]), "announces|breaks off"),
    "an older one with more behind": (
        lambda path, t: (WRITERS["legacy.pth"](path, t), path.write_bytes(path.read_bytes() + b"more")), "announces",
    ),
    "a twin, cut": (lambda path, t: cut(path, t, script), "does not end as one"),
    "a pickle, cut": (lambda path, t: cut(path, t, WRITERS["nvlabs.pkl"]), "breaks off"),
    "a pickle with more behind": (
        lambda path, t: (WRITERS["nvlabs.pkl"](path, t), path.write_bytes(path.read_bytes() + b"more")),
        "4 bytes follow",
    ),
    "a tensor missing": (without("Mixed_7c.branch_pool.bn.bias"), r"- Mixed_7c.branch_pool.bn.bias \[12\] is missing"),
    "a tensor more": (more(extra=torch.zeros(2)), r"\+ extra is not part of it"),
    "another shape": (
        more(**{"Conv2d_1a_3x3.conv.weight": torch.zeros(2, 3, 5, 5)}),
        r"! Conv2d_1a_3x3.conv.weight is \[2, 3, 5, 5\], should be \[2, 3, 3, 3\]",
    ),
    "a number among tensors": (more(epoch=3), "something in it is no tensor"),
    "a class of another module": (more(evil=Evil()), "system"),
    "an older one with a class": (more_legacy(evil=Evil()), "system"),
    "an older one with a number": (more_legacy(epoch=3), "something in it is no tensor"),
    "a storage twice": (more(one=SHARED[:5], two=SHARED[:5]), "is used twice|is not the whole of its storage"),
    "an older one with a storage twice": (more_legacy(one=SHARED, two=SHARED), "twice|is set|changes|is not part"),
    "half of a storage": (more(one=SHARED[:5]), "is not the whole of its storage"),
    "a transposed tensor": (more(one=torch.zeros(3, 4).T), "is not contiguous"),
    "integers": (more(one=torch.zeros(3, dtype=torch.int32)), "IntStorage"),
    "a twin of another class": (evil_twin, "global 'posix.Node' has no place"),
    "a twin whose tensors are compressed": (compressed_tensors, "compressed or encrypted"),
    "a twin of another network": (
        lambda path, _: torch.jit.script(torch.nn.Linear(2, 3)).save(str(path)), "does not hold the Inception network",
    ),
    "a dictionary": (pickled({"a": 1}), "does not hold the Inception network"),
    "a number": (pickled(5), "holds no modules"),
    "a list": (pickled([{}]), "holds no modules"),
    "a pickled class": (pickled(Evil()), "system"),
    "modules nested 41 deep": (nested, "nested more than 16 deep"),
    "a pickle of a module that is there 10^14 times": (fanned, "nested more than 16 deep, or more than 10,000"),
    "a pickle of a torch network": (
        lambda path, _: write_nvlabs_pickle(path, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))),
        r"\+ 0.weight is not part of it|- Conv2d_1a_3x3",
    ),
    "a pickle with a function": (changed_module(lambda module: setattr(module, "hook", print)), "print"),
    "a pickle without a layer": (changed_module(lambda module: delattr(module.layers, "conv")), "- Conv2d_1a_3x3"),
    "a pickle with one layer more": (
        changed_module(lambda module: module.layers.add_module("conv_5", module.layers.conv_4)), "twice|conv_5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, tensors, name):
    write, said = BAD[name]
    path = tmp_path / "weights.pth"
    write(path, tensors)
    with pytest.raises(ConverterError, match=said) as caught:
        read_tensors(path, "fid")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


SAFETENSORS = {
    "no such file": (lambda path, _: None, "there is no such file"),
    "a pickle by name": (lambda path, _: path.write_bytes(pickle.dumps({})), "is no safetensors file"),
    "a tensor missing": (
        lambda path, t: safetensors.numpy.save_file({k: v for k, v in t.items() if k != "Mixed_6a.branch3x3.bn.bias"},
                                                    path),
        "- Mixed_6a.branch3x3.bn.bias",
    ),
    "integers": (
        lambda path, t: safetensors.numpy.save_file(t | {"extra": np.zeros(3, np.int32)}, path), r"\+ extra",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS)
def test_bad_safetensors(tmp_path, tensors, name):
    write, said = SAFETENSORS[name]
    path = Path(tmp_path / "weights.safetensors")
    write(path, tensors)
    with pytest.raises(DetectorError, match=said) as caught:
        read_tensors(path, "fid")
    assert str(caught.value).startswith(f"{path}: ")


def test_other_metrics_file(tmp_path, tensors):
    torch_file(tmp_path / "weights.pth", tensors)
    with pytest.raises(DetectorError, match="does not hold DINOv2's ViT-L/14: "):
        read_tensors(tmp_path / "weights.pth", "fd_dinov2")
