"""Broken and hostile safetensors checkpoints: their records, and their headers.

Each is given to edm2-sample, or to edm2-convert beside the snapshot whose checkpoint it pretends to be, and must be
refused in one line. They are made from the checkpoint of a tiny network.
"""

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_edm2.converter.convert import convert
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.record import CHECK, KEY
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.corpora.hostile_pickles import CONFIG
from tests.corpora.inputs import ACCEPT, Input
from tests.support.json_mutants import MARK, RAW
from tests.support.networks import network

INPUTS: list[Input] = []
ENDING = ("--outdir=output", "--seeds=0", "--steps=1", "--device=cpu")
SAFETENSORS, ORBAX, VAE = "input.safetensors", "input", "vae"
LATENT = {**CONFIG, "img_channels": 4, "label_dim": 0}
OK = {"file": SAFETENSORS, "output": "output", "seconds": 30, "megabytes": 400}  # a network is compiled and run


@functools.cache
def sound(format: str) -> Path:
    """A checkpoint of a tiny network of latents."""
    folder = Path(tempfile.mkdtemp(prefix="edm2-sound-"))
    write_snapshot(folder / "x.pkl", network(LATENT), encoder=StabilityVAEEncoder())
    with read_snapshot(folder / "x.pkl") as snapshot:
        convert(snapshot, folder / "checkpoint", format=format)
    return folder / "checkpoint"


def parts() -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, record and tensors' bytes of the safetensors file."""
    data = sound("safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, json.loads(header["__metadata__"][KEY]), data[end:]


def built(header: Any, data: bytes, raw: bytes = b"") -> bytes:
    """A safetensors file. raw: what MARK stands for in the header."""
    text = json.dumps(header).encode().replace(json.dumps(MARK).encode(), raw)
    return len(text).to_bytes(8, "little") + text + data


def with_record(text: str) -> bytes:
    header, _, data = parts()
    header["__metadata__"][KEY] = text
    return built(header, data)


def checkpoint_input(kind: str, name: str, says: str, make: Callable[[Path], Any], **more: Any) -> Input:
    """For edm2-sample, if `more` names no other command. make(path) writes the checkpoint, or gives its bytes."""

    def build(path: Path):
        data = make(path)
        if isinstance(data, bytes):
            path.write_bytes(data)

    file = more.get("file", SAFETENSORS)
    more = {"command": ("edm2-sample", f"--net={file}", "--latents", *ENDING), "file": file, "output": "output"} | more
    return Input(kind, name, build, says, **more)


def add(*described: Any, **more: Any):
    INPUTS.append(checkpoint_input(*described, **more))


# Records

RECORD = "record"


def record(name: str, says: str, edit: Callable[[dict], Any], raw: bytes = b""):
    """edit(record) changes it, or gives another; it gets a digest of its own only if it had one."""

    def make(_path):
        _, fields, _ = parts()
        del fields[CHECK]
        changed = edit(fields)
        text = json.dumps(fields if changed is None else changed).replace(json.dumps(MARK), raw.decode())
        return with_record(text)

    add(RECORD, name, says, make)


NOT = "'edm2' metadata is not a record of this format"
record("nested deep", "more than 10,000 values", lambda r: r.update(guide=MARK), RAW["lists nested 100,000 deep"])
record("nested 500 deep", "nested more than", lambda r: r.update(guide=MARK), RAW["objects nested 500 deep"])
record("an integer of 5,000 digits", "a number of 5,000 digits", lambda r: r.update(format=MARK), b"9" * 5000)
record("NaN", "holds NaN", lambda r: r["sampler"].update(rho=MARK), b"NaN")
record("Infinity", "holds Infinity", lambda r: r["sampler"].update(rho=MARK), b"Infinity")
record("1e999", "is too large", lambda r: r["sampler"].update(rho=MARK), b"1e999")
record("guide is 5", "sampler.guide must be a text", lambda r: r["sampler"].update(guide=5))
record("guidance is text", "sampler.guidance must be a number", lambda r: r["sampler"].update(guidance="1"))
record("guidance is true", "sampler.guidance must be a number", lambda r: r["sampler"].update(guidance=True))
record("num_steps is 1.5", "sampler.num_steps must be an integer", lambda r: r["sampler"].update(num_steps=1.5))
record("dtype is 5", "dtype must be the name of a dtype", lambda r: r.update(dtype=5))
record("dtype is a list", "dtype must be the name of a dtype", lambda r: r.update(dtype=["float16"]))
record("digest is 5", "digest must be a text", lambda r: r.update(digest=5))
record("no digest", "its record has no digest", lambda r: r.update(digest=""))
record("a malformed digest", "its record has no digest", lambda r: r.update(digest="sha256:0"))
record("another digest", "its tensors were altered", lambda r: r.update(digest="sha256:" + "0" * 64))
record("its own digest is wrong", "was altered: it does not have its own", lambda r: r.update({CHECK: "sha256:0"}))
record("its own digest is a list", "was altered: it does not have its own", lambda r: r.update({CHECK: []}))
record("format is 99", "it has format 99", lambda r: r.update(format=99))
record("format is true", "it has format True", lambda r: r.update(format=True))
record("format is text", "it has format '1'", lambda r: r.update(format="1"))
record("format is missing", "has no format", lambda r: r.pop("format") and None)
record("config is missing", "config is missing", lambda r: r.pop("config") and None)
record("config is null", "config must be an EDM2Config", lambda r: r.update(config=None))
record("config is a list", "config must be an object", lambda r: r.update(config=[]))
record(
    "config without img_channels", "config.img_channels is missing", lambda r: r["config"].pop("img_channels") and None
)
record(
    "config with nested lists", "channel_mult must be a short list", lambda r: r["config"].update(channel_mult=[[1]])
)
record("config with an object", "resample_filter must be", lambda r: r["config"].update(resample_filter={"a": 1}))
record("config with one key more", "config.'magic' is not part", lambda r: r["config"].update(magic=1))
record("config of another shape", "does not hold the network", lambda r: r["config"].update(label_dim=1000))
record("a resolution of 2^14", "is too large for a network of", lambda r: r["config"].update(img_resolution=2**14))
record("label_dim of 2^20", "does not hold the network", lambda r: r["config"].update(label_dim=2**20))
record("1,000 blocks", "at most 1,000 are supported", lambda r: r["config"].update(num_blocks=1000))
record("2,000 blocks", "num_blocks must be an integer", lambda r: r["config"].update(num_blocks=2000))
record("an unknown key", "'magic' is not part of a record", lambda r: r.update(magic=1))
record("a key of a megabyte", "holds 1,", lambda r: r.update({"x" * 10**6: 1}))
record("a key with a bell and a mark", "'\\x07\\u202e' is not part", lambda r: r.update({"\x07\u202e": 1}))
record("sampler is null", "sampler must be a Sampler", lambda r: r.update(sampler=None))
record("source is text", "source must be an object", lambda r: r.update(source="x.pkl"))
record("a hash that is none", "source.sha256 must be 64", lambda r: r["source"].update(sha256="x" * 64))
record("encoder.scale is text", "encoder.scale must be", lambda r: r["encoder"].update(scale="1"))
record("encoder.scale is 0", "encoder.scale must be", lambda r: r["encoder"].update(scale=[0, 0, 0, 0]))
record("encoder.scale is nested", "encoder.scale must be", lambda r: r["encoder"].update(scale=[[1]]))
record("encoder.bias is huge", "encoder.bias must be", lambda r: r["encoder"].update(bias=[1e300] * 4))
record("20,000 values", "more than 10,000 values", lambda r: r.update(license=[0] * 20_000))
record("a number", NOT, lambda _: 5)
record("a list", NOT, lambda _: [])
record(
    "a class name of 100,000 letters", "encoder.kind must be a text", lambda r: r["encoder"].update(kind="x" * 10**5)
)
add(
    RECORD,
    "not there",
    "is no checkpoint of this project: it has no 'edm2' metadata",
    lambda _: built((lambda h, _, d: ({**h, "__metadata__": {}}, d))(*parts())[0], parts()[2]),
)
add(RECORD, "no JSON", NOT, lambda _: with_record("{"))
add(RECORD, "nothing", NOT, lambda _: with_record(""))
add(RECORD, "of 91 MB", "has a header of 91,", lambda _: with_record(json.dumps({"x": ["y"] * 13_000_000})))
add(RECORD, "of 3 MB", "bytes of JSON; 262,144 are read", lambda _: with_record(" " * 3 * 10**6))
add(RECORD, "with a key twice", "has a key twice", lambda _: with_record('{"format": 1, "format": 1}'))
add(RECORD, "an older one, without a digest of its own", ACCEPT, lambda _: with_record(json.dumps(_older())), **OK)
add(RECORD, "as it should be", ACCEPT, lambda path: shutil.copy(sound("safetensors"), path) and None, **OK)


def _older() -> dict[str, Any]:
    _, fields, _ = parts()
    return {name: value for name, value in fields.items() if name not in (CHECK, "not_finite")}


# Headers of safetensors files

HEADER = "safetensors"


def header(name: str, says: str, edit: Callable[[dict], Any], raw: bytes = b""):
    def make(_path):
        found, _, data = parts()
        changed = edit(found)
        return built(found if changed is None else changed, data, raw)

    add(HEADER, name, says, make)


GAIN, OUT = "params/unet/out_gain", "params/unet/out_conv/mpconv_weight"
header("nested deep", "nested more than", lambda h: h[GAIN].update(shape=MARK), RAW["lists nested 100,000 deep"])
header("an integer of 5,000 digits", "5,000 digits", lambda h: h[GAIN].update(shape=[MARK]), b"9" * 5000)
header("NaN in a shape", "holds NaN", lambda h: h[GAIN].update(shape=[MARK]), b"NaN")
header("a shape that is text", "malformed shape", lambda h: h[GAIN].update(shape="1"))
header("a shape of a float", "malformed shape", lambda h: h[GAIN].update(shape=[1.0]))
header("a shape of true", "malformed shape", lambda h: h[GAIN].update(shape=[True]))
header("a negative dimension", "malformed shape", lambda h: h[OUT].update(shape=[-4, -4, 3, 3]))
header("100 dimensions", "malformed shape", lambda h: h[GAIN].update(shape=[1] * 100))
header("dimensions that overflow", "bytes, not", lambda h: h[OUT].update(shape=[2**61, 2**61, 2**61, 0, 8]))
header("an unknown dtype", "unknown dtype 'F17'", lambda h: h[GAIN].update(dtype="F17"))
header("a dtype that is a list", "unknown dtype", lambda h: h[GAIN].update(dtype=["F16"]))
header("a dtype of another size", "has 2 bytes, not 4", lambda h: h[GAIN].update(dtype="F32"))
header("a dtype of the same size", f"{GAIN} is I16; weights are F16", lambda h: h[GAIN].update(dtype="I16"))
header("another dtype of the same size", "its tensors were altered", lambda h: h[GAIN].update(dtype="BF16"))
header("offsets that overlap", "does not begin where", lambda h: h[GAIN].update(data_offsets=[0, 2]))
header("offsets with a hole", "does not begin where", lambda h: h.pop(OUT) and None)
header("offsets beyond the end", "does not begin where", lambda h: h[GAIN].update(data_offsets=[10**9, 10**9 + 2]))
header("three offsets", "malformed offsets", lambda h: h[GAIN].update(data_offsets=[0, 2, 2]))
header("offsets backwards", "has -2 bytes, not 2", lambda h: h[GAIN].update(data_offsets=[2, 0]))
header("an entry that is null", "has no dtype, shape and data_offsets", lambda h: h.update({GAIN: None}))
header("an entry with more", "or more than these", lambda h: h[GAIN].update(more=1))
header("no tensors", "its header speaks of", lambda h: {"__metadata__": h["__metadata__"]})
header("a list", "its header is no JSON object", lambda _: [])
header("metadata that is a list", "its metadata is not all text", lambda h: h.update(__metadata__=[]))
header("metadata with a number", "its metadata is not all text", lambda h: h["__metadata__"].update(more=1))
header("one tensor is called otherwise", "- params/unet/out_gain [] is missing", lambda h: h.update(x=h.pop(GAIN)))
header("a name of a megabyte", "is missing; + x", lambda h: h.update({"x" * 10**6: h.pop(GAIN)}))
header("a name with a bell", "+ \\x07\\u202e [] is not part of it", lambda h: h.update({"\x07\u202e": h.pop(GAIN)}))
add(
    HEADER,
    "10^6 empty tensors",
    "has a header of",
    lambda _: built({str(i): {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(10**6)}, b""),
)
add(
    HEADER,
    "20,000 empty tensors",
    "more than",
    lambda _: built({str(i): {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}, b""),
)
add(HEADER, "a length of 2^63", "do not hold the header", lambda _: (2**63).to_bytes(8, "little") + b"{}")
add(HEADER, "a length of 0", "do not hold the header", lambda _: bytes(100))
add(
    HEADER, "a header of 90 MB", "has a header of 90,", lambda _: (90 * 10**6).to_bytes(8, "little") + b" " * 90 * 10**6
)
add(HEADER, "spaces in front", "no JSON object", lambda _: (20).to_bytes(8, "little") + b"  " + b"{}" + b" " * 16)
add(HEADER, "no UTF-8", "is no JSON", lambda _: (8).to_bytes(8, "little") + b'{"\xff": 1}')
add(HEADER, "nothing", "do not hold the header", lambda _: b"")
add(HEADER, "one byte", "do not hold the header", lambda _: b"{")
add(HEADER, "half of it", "its header speaks of", lambda _: _bytes()[: len(_bytes()) // 2])
add(HEADER, "a byte less", "its header speaks of", lambda _: _bytes()[:-1])
add(HEADER, "a byte more", "its header speaks of", lambda _: _bytes() + b"\0")
add(
    HEADER, "a bit flipped in a tensor", "its tensors were altered", lambda _: _bytes()[:-1] + bytes([_bytes()[-1] ^ 1])
)
add(HEADER, "two tensors exchanged", "its tensors were altered", lambda _: _exchanged())
add(HEADER, "a FIFO", "no regular file", lambda path: os.mkfifo(path))
add(HEADER, "a link to a device", "no regular file", lambda path: path.symlink_to("/dev/zero"))
add(HEADER, "a link to nothing", "there is no such file", lambda path: path.symlink_to("nowhere"))
add(HEADER, "a link to itself", "", lambda path: path.symlink_to(path.name))
add(HEADER, "a zip file", "but a zip archive", lambda _: b"PK\x03\x04" + bytes(100))
add(HEADER, "NaN in a weight", f"NaN or infinite, in {GAIN} (1)", lambda path: _poisoned(path, {GAIN: np.nan}))


def _bytes() -> bytes:
    return sound("safetensors").read_bytes()


def _exchanged() -> bytes:
    """Two tensors of the same shape, each with the other's values."""
    found, _, data = parts()
    names = [f"params/unet/enc_8x8_block0/conv_res{i}/mpconv_weight" for i in range(2)]
    assert found[names[0]]["shape"] == found[names[1]]["shape"]
    one, other = (found[name]["data_offsets"] for name in names)
    found[names[0]]["data_offsets"], found[names[1]]["data_offsets"] = other, one
    return built(found, data)


def _poisoned(path: Path, values: dict[str, float]):
    import jax_edm2

    net, variables = jax_edm2.load(sound("safetensors"))
    from flax.traverse_util import flatten_dict, unflatten_dict

    leaves = flatten_dict(variables, sep="/")
    leaves |= {name: np.full(leaves[name].shape, value, np.float16) for name, value in values.items()}
    kept = jax_edm2.read_record(sound("safetensors"))
    jax_edm2.save(path, net, unflatten_dict(leaves, sep="/"), record=kept)
