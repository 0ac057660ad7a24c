"""Truth files that are broken or hostile, and what edm2-verify must say to each.

`tests/verify/test_hostile_truths.py` gives all of them to the library, and some to the command; `make hostile` gives
nearly all of them to the command.
"""

import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_edm2.converter.verify.truth import MEMBER
from tests.corpora.inputs import Input
from tests.support.truths import NOTHING, PLAN, SMALL, Parts, archive, facts, sealed

INPUTS: list[Input] = []
TAP = "seed0/unet.enc.4x4_conv/conv"
LAST = "unet.embedding/emb_silu"
COMMAND = ("edm2-verify", "--truth", "truth.npz", "--checkpoint", "none.safetensors", "--device", "cpu")


def add(name: str, says: str, build: Callable[[Path], object]):
    INPUTS.append(Input("truth", name, build, says, COMMAND, "truth.npz", None))


def file(name: str, says: str, content: Callable[[], bytes]):
    add(name, says, lambda path: path.write_bytes(content()))


def parts(name: str, says: str, change: Callable[[Parts], object], base: Callable[[], Parts] = Parts.made_up):
    """A sound file with one change, which everything in it is sealed with."""

    def build(path: Path):
        found = base()
        change(found)
        path.write_bytes(found.archive())

    add(name, says, build)


def fact(name: str, says: str, *place: Any):
    """place: keys down to a value of the facts, and another value."""
    parts(name, says, lambda found: found.say(*place))


def lacking(name: str, says: str, *keys: Any, base: Callable[[], Parts] = Parts.made_up):
    def change(found: Parts):
        node = found.facts
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]

    parts(name, says, change, base)


# What is no such archive

file("empty", "is no zip archive", lambda: b"")
file("text", "is no zip archive", lambda: b"This is no archive.\n" * 20)
file("noise", "is no zip archive", lambda: np.random.default_rng(0).bytes(10_000))
file("JSON", "is no zip archive", lambda: Parts.made_up().text())
file("cut in the middle", "is no zip archive, or cut short", lambda: Parts.made_up().archive()[:100_000])
file("a byte short", "is no zip archive, or cut short", lambda: Parts.made_up().archive()[:-1])
file("a byte too long", "is no zip archive, or cut short", lambda: Parts.made_up().archive() + b"\0")
file("something in front", "is no zip archive of one piece", lambda: b"#!/bin/sh\n" + Parts.made_up().archive())
file("an archive of nothing", f"it has no {MEMBER}", lambda: archive([]))
file("another writer's", "has gaps", lambda: archive([("x.npy", b"")], zip64=False))
add("a folder", "is no file", lambda path: path.mkdir())
add("a pipe", "is no file", os.mkfifo)
add("a link to nothing", "there is no such file", lambda path: path.symlink_to("nothing"))
add("a link to itself", "Too many levels of symbolic links", lambda path: path.symlink_to(path.name))
add("an endless device", "is no file", lambda path: path.symlink_to("/dev/zero"))


def directory_of(count: int) -> bytes:
    """An archive of `count` empty members with one name, and no more than its directory."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    data = entry * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count % 65536, count % 65536, len(data), 0, 0)
    return data + end


def at_end(change: Callable[[list[int]], object]) -> bytes:
    """A sound archive whose end says something else: disk, disk, count, count, size, offset, comment."""
    data = Parts.made_up().archive()
    fields = list(struct.unpack("<4H2IH", data[-18:]))
    change(fields)
    return data[:-18] + struct.pack("<4H2IH", *fields)


def in_directory(name: str, at: int, form: str, value: int) -> bytes:
    """A sound archive with another value in the directory's entry of a member. at: bytes from the entry's start."""
    data = bytearray(Parts.made_up().archive())
    start = data.rindex(name.encode()) - 46
    struct.pack_into(form, data, start + at, value)
    return bytes(data)


file("10^6 members", "more than is ever needed", lambda: directory_of(10**6))
file("100,000 members of one name", "it counts 34,464", lambda: directory_of(100_000))
file("an end that counts 9 here", "is no zip archive of one piece", lambda: at_end(lambda f: f.__setitem__(2, 9)))
file("an end that counts 9", "it counts 9 members", lambda: at_end(lambda f: f.__setitem__(slice(2, 4), [9, 9])))
file("a directory of 4 GB", "is no zip archive of one piece", lambda: at_end(lambda f: f.__setitem__(4, 2**32 - 1)))
file("a directory elsewhere", "is no zip archive of one piece", lambda: at_end(lambda f: f.__setitem__(5, 0)))
file("a comment", "is no zip archive", lambda: at_end(lambda f: f.__setitem__(6, 7)))
file("an encrypted member", "compressed or encrypted", lambda: in_directory(f"{TAP}.npy", 8, "<H", 1))
file("an unknown compression", "compressed or encrypted", lambda: in_directory(f"{TAP}.npy", 10, "<H", 99))
file("a member of 4 GB", "compressed or encrypted", lambda: in_directory(f"{TAP}.npy", 24, "<I", 2**32 - 2))
file("a member without end", "compressed or encrypted", lambda: in_directory(f"{TAP}.npy", 24, "<I", 2**32 - 1))
file("overlapping members", "where it does not belong", lambda: in_directory(f"{TAP}.npy", 42, "<I", 0))
file("a name with NUL", "where it does not belong", lambda: in_directory(f"{TAP}.npy", 46 + 5, "<B", 0))
file("a name that is not ASCII", "where it does not belong", lambda: in_directory(f"{TAP}.npy", 46 + 5, "<B", 0xE9))


def with_members(change: Callable[[list[tuple[str, bytes]]], object], deflated: tuple[str, ...] = ()) -> bytes:
    found = Parts.made_up()
    members = list(found.members.items())
    change(members)
    return archive([*members, (MEMBER, found.text())], deflated)


file("a member more", "has a member 'more.npy'", lambda: with_members(lambda m: m.append(("more.npy", b""))))
file("a climbing name", "has a member '../../x'", lambda: with_members(lambda m: m.append(("../../x", b""))))
file("a pickle beside", "has a member 'x.pkl'", lambda: with_members(lambda m: m.append(("x.pkl", b"cos\nsystem\n"))))
file("a member less", "lacks the member", lambda: with_members(lambda m: m.pop()))
file(
    "a member twice", "has 'twice' twice",
    lambda: with_members(lambda m: m.extend([("twice", b""), ("again", b"")])).replace(b"again", b"twice"),
)  # fmt: skip
file("a deflated member", "compressed or encrypted", lambda: with_members(lambda m: None, (f"{TAP}.npy",)))
file(
    "a deflated member of 100 MB", "compressed or encrypted",
    lambda: archive([("bomb.npy", bytes(10**8)), (MEMBER, Parts.made_up().text())], ("bomb.npy",)),
)  # fmt: skip
file("no truth.json", f"it has no {MEMBER}", lambda: archive(list(Parts.made_up().members.items())))
file("a deflated truth.json", "compressed or encrypted", lambda: with_members(lambda m: None, (MEMBER,)))
file("a deflated truth.json of 60 MB", "compressed", lambda: archive([(MEMBER, bytes(6 * 10**7))], (MEMBER,)))
file("a truth.json of 30 MB", "are read at most", lambda: archive([(MEMBER, b" " * 30 * 10**6)]))


# truth.json as a text


def text(name: str, says: str, record: bytes):
    file(name, says, lambda: Parts.made_up().archive(record))


text("an empty truth.json", "has no schema", b"")
text("a truth.json of noise", "has no schema", b"\xff\xfe\0" * 100)
text("another order of keys", "has no schema", b'{"sha256": "0", "schema": "edm2-truth/3"}')
text("an old schema", "has schema 'edm2-truth/2', not 'edm2-truth/3'; make it again", sealed(b"{}", "edm2-truth/2"))
text("a later schema", "has schema 'edm2-truth/4', not 'edm2-truth/3'", sealed(b"{}", "edm2-truth/4"))
text("no digest", "is damaged: the sha256 of truth.json", b'{"schema": "edm2-truth/3", "facts": {}}')
text("a wrong digest", "is damaged: the sha256 of truth.json", sealed(b"{}")[:-1] + b" }")
text("no JSON", "is no JSON", sealed(b"{nothing"))
text("not ASCII", "not ASCII", sealed('{"é": 1}'.encode()))
text("NaN", "holds NaN", sealed(b'{"members": NaN}'))
text("an integer of 5,000 digits", "of 5,000 digits", sealed(b'{"members": ' + b"9" * 5000 + b"}"))
text("nested 100,000 deep", "is nested more than", sealed(b'{"members": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"))
text("a key twice", "has a key twice", sealed(b'{"members": {}, "members": {}}'))
text("two million values", "values", sealed(b'{"members": [' + b"0," * 2 * 10**6 + b"0]}"))
text("another schema after all", "has a key twice", sealed(b'{"schema": "edm2-truth/1"}'))
text("keys of no meaning", "not of members and facts", sealed(b'{"a": 1, "\\u001b[31m": 2}'))
text("no facts", "the facts must be an object", sealed(b'{"members": {}, "facts": []}'))
text("no members", "for a table of members", sealed(b'{"members": 3, "facts": {}}'))
file(
    "schema 1 as it was made", "has schema 'edm2-truth/1', not 'edm2-truth/3'; make it again with --save-truth",
    lambda: archive([(MEMBER, b'{"schema": "edm2-truth/1", "plan": {}}')], (MEMBER,), zip64=False),
)  # fmt: skip


# The table of members, and their headers


def entry(name: str, says: str, value: Any):
    parts(name, says, lambda found: found.record["members"].__setitem__(TAP, value))


NO_ENTRY = "has no dtype, shape and sha256 for its member"
entry("an entry that is null", NO_ENTRY, None)
entry("an entry of two", NO_ENTRY, ["<f8", [2, 4, 4, 4]])
entry("a shape that is a number", NO_ENTRY, ["<f8", 128, NOTHING])
entry("a shape of 10^9 sides", NO_ENTRY, ["<f8", [1] * 1000, NOTHING])
entry("a shape of fractions", NO_ENTRY, ["<f8", [2.0, 4, 4, 4], NOTHING])
entry("a shape of truth values", NO_ENTRY, ["<f8", [True, 4, 4, 4], NOTHING])
entry("a negative shape", NO_ENTRY, ["<f8", [-2, -4, 4, 4], NOTHING])
entry("a shape beyond all", NO_ENTRY, ["<f8", [2**60, 2**60], NOTHING])
entry("a shape of 10^9 numbers", "which should be <f8 [2, 4, 4, 4]", ["<f8", [10**9], NOTHING])
entry("object dtype", NO_ENTRY, ["|O", [2, 4, 4, 4], NOTHING])
entry("a big-endian dtype", NO_ENTRY, [">f8", [2, 4, 4, 4], NOTHING])
entry("a digest of another kind", NO_ENTRY, ["<f8", [2, 4, 4, 4], "md5:0"])
entry("a digest that is a list", NO_ENTRY, ["<f8", [2, 4, 4, 4], [1]])
parts("a member in float32", "which should be <f8", lambda p: p.put(TAP, np.zeros((2, 4, 4, 4), np.float32)))
parts("a member transposed", "which should be <f8", lambda p: p.put(TAP, np.zeros((4, 4, 4, 2))))
parts("a member of another batch", "which should be <f8", lambda p: p.put(TAP, np.zeros((3, 4, 4, 4))))
parts("a tap that does not exist", "of no use", lambda p: p.put("seed0/unet.enc.9x9_conv/conv", np.zeros(3)))
parts("another seed's tap", "of no use", lambda p: p.put("seed7/denoised", np.zeros((2, 1, 4, 4))))


def dropped(key: str):
    def change(found: Parts):
        del found.record["members"][key], found.members[f"{key}.npy"]

    return change


for key in (TAP, "seed0/denoised", "loss", "trajectory", "gradient/input", f"seed0 unlabelled/{LAST}"):
    parts(f"without {key}", f"lacks the array {key!r}", dropped(key))


def renamed_header(old: bytes, new: bytes):
    def change(found: Parts):
        data = found.members[f"{TAP}.npy"]
        assert old in data
        found.members[f"{TAP}.npy"] = data.replace(old, new)

    return change


NO_NPY = "is no .npy file of <f8 [2, 4, 4, 4]"
parts("a header in Fortran's order", NO_NPY, renamed_header(b"False", b"True "))
parts("a header of objects", NO_NPY, renamed_header(b"<f8", b"|O8"))
parts("a header of another shape", NO_NPY, renamed_header(b"(2, 4, 4, 4)", b"(4, 2, 4, 4)"))
parts("a header of .npy version 3", NO_NPY, renamed_header(b"NUMPY\1", b"NUMPY\3"))
parts("a header of no length", NO_NPY, renamed_header(b"\x76\0{", b"\0\0{"))
parts("a damaged value", "is damaged: its sha256 is not", lambda p: p.members.__setitem__(
    f"{TAP}.npy", p.members[f"{TAP}.npy"][:-1] + b"\x7f"))  # fmt: skip
parts("a member cut", "bytes, which should have", lambda p: p.members.__setitem__(
    f"{TAP}.npy", p.members[f"{TAP}.npy"][:-8]))  # fmt: skip
MEMBERS_READ = {"a header in Fortran's order", "a header of objects", "a header of another shape",
                "a header of .npy version 3", "a header of no length", "a damaged value"}  # fmt: skip


# Facts

for key in facts(SMALL, PLAN):
    lacking(f"facts without {key}", f"the facts must have '{key}'", key)
    fact(f"facts whose {key} is a list of lists", "", key, [[1, [2]]])
    fact(f"facts whose {key} is a number", "", key, -5) if key not in ("repeat", "seconds") else None
fact("a fact of no meaning", "the facts must not have 'more'", "more", 1)
for key, values in {
    "checks": ([], ["nothing"], ["forward", "forward"], "forward", [["forward"]], [5], None),
    "seeds": ([], [-1], [0, 0], [0.5], [True], [10**18], list(range(20_000)), "0", 0),
    "sigmas": ([], [0], [-1.0], ["1"], [1e6], [True], [1.0] * 2000, None, 5.0),
    "batch": (0, -1, 10**9, 1.5, "4", True, None, [4]),
    "steps": (0, -1, 10**9, 1.5, "4", True, None),
    "precision": ("float64", "", 32, None, ["float32"], "float32 on TPU"),
}.items():
    lacking(f"a plan without {key}", "has a plan that is none: must have", "plan", key)
    for value in values:
        fact(f"a plan with {key} of {value!r:.30}", f"has a plan that is none: {key} must be", "plan", key, value)
fact("a plan of more", "has a plan that is none: must have", "plan", "more", 1)
fact("a plan of another batch", "which should be <f8", "plan", "batch", 3)
fact("a plan of more steps", "which should be <f8", "plan", "steps", 3)
fact("a plan of more seeds", "lacks the array 'seed1", "plan", "seeds", [0, 1])
fact("a plan of another seed", "lacks the array 'seed1", "plan", "seeds", [1])
fact("a plan of fewer checks", "has a training, and a plan without one", "plan", "checks", ["parameters"])
fact("a config of 2^14 pixels", "is too large for a network of", "config", "img_resolution", 2**14)
fact("a config of 2^20 labels", "must have the shape", "config", "label_dim", 2**20)
fact("a config of 1,000 blocks", "at most 1,000 are supported", "config", "num_blocks", 1000)
fact("a config of no channels", "has a config that is none: model_channels", "config", "model_channels", 0)
fact("a config of text", "has a config that is none", "config", "model_channels", "4")
fact("a config of 10^90", "has a config that is none", "config", "sigma_data", 10**90)
fact("a config of more", "has a config with other fields", "config", "__class__", 1)
lacking("a config without its labels", "has a config with other fields", "config", "label_dim")
fact("a config of other attention", "parameters must", "config", "attn_resolutions", [4])
fact("a config without clipping", "lacks the array", "config", "clip_act", None)
WEIGHT = "unet.out_conv.weight"
lacking("a parameter missing", f"parameters must have '{WEIGHT}'", "parameters", WEIGHT)
fact("a parameter more", "parameters must not have", "parameters", "x", {"shape": [], "sha256": NOTHING})
lacking("a parameter without digest", "must have 'sha256'", "parameters", WEIGHT, "sha256")
fact("a parameter's digest is null", "must be 64 hexadecimal digits", "parameters", WEIGHT, "sha256", None)
fact("a parameter's digest is long", "must be 64 hexadecimal digits", "parameters", WEIGHT, "sha256", "0" * 10**6)
fact("a parameter's shape is text", "must have the shape", "parameters", WEIGHT, "shape", "4")
fact("a parameter's shape is huge", "must have the shape", "parameters", WEIGHT, "shape", [10**9])
fact("a snapshot of no name", "snapshot's name must be a text", "snapshot", "name", 5)
fact("a snapshot of a long name", "of at most 1,000 characters", "snapshot", "name", "x" * 10**6)
fact("a snapshot of many things", "at most 100 values", "snapshot", "more", [0] * 1000)
fact("a snapshot of a wrong digest", "64 hexadecimal digits", "snapshot", "sha256", "sha256:0")
fact("another reference", "reference must be one of", "reference", "mine")
FEW = dataclasses.replace(PLAN, checks=("gradients",))
ISOLATED = ("errors", "seed0", "isolated")
lacking("errors without a tap", "must have 'input/c_noise'", *ISOLATED, "input/c_noise")
fact("errors of a tap that does not exist", "must not have 'x'", *ISOLATED, "x", {})
fact("an error that is null", "must be a number", *ISOLATED, LAST, "error", None)
fact("an error below 0", "must not be below 0", *ISOLATED, LAST, "error", -1e-7)
fact("an error of minus infinity", "must not be below 0", *ISOLATED, LAST, "error", "-Infinity")
fact("an error of text", "must be a number", *ISOLATED, LAST, "error", "small")
fact("an error that is true", "must be a number", *ISOLATED, LAST, "error", True)
fact("an error of 10^300", "must be a number", *ISOLATED, LAST, "error", 1e300)
fact("a condition below 0", "must not be below 0", *ISOLATED, LAST, "condition", -1)
fact("a dtype that is none", "must be of one of float64", *ISOLATED, LAST, "dtype", "int8")
lacking("errors without a dtype", "must have 'dtype'", *ISOLATED, LAST, "dtype")
lacking("errors without a case", "errors must have 'seed0'", "errors", "seed0")
lacking("errors without the unlabelled", "errors must have 'seed0 unlabelled'", "errors", "seed0 unlabelled")
lacking("errors without a kind", "must have 'isolated'", *ISOLATED)
lacking("errors without an output", "must have 'logvar'", "errors", "seed0", "outputs", "logvar")
lacking("errors without gradients", "must have 'gradients'", "errors", "gradients")
lacking("errors without training", "must have 'training'", "errors", "training")
lacking("errors without a loss of the training", "must have 'training/loss'", "errors", "training", "training/loss")
lacking("a training without eps", "must have 'eps'", "training", "eps")
fact("a training that is null", "training must be an object", "training", None)
fact("a training of images below 0", "training must have images from 0", "training", "images", -1)
fact("a training of steps that are no number", "training must have steps from 0", "training", "steps", "1")
fact("a training of 10^30 images", "training must have images from 0", "training", "images", 10**30)
fact("a training of stds that are none", "training must have stds", "training", "stds", [0.05, 0.9])
fact("a training of 10,000 stds", "training must have stds", "training", "stds", [i / 1e5 for i in range(1, 10001)])
fact("a training of equal stds", "training must have different stds", "training", "stds", [0.05, 0.0500001])
fact("a training of other stds", "lacks the array 'training/ema-0.200", "training", "stds", [0.05, 0.2])
fact("a training of eps below 0", "must not be below 0", "training", "eps", -1.0)
fact("a training of eps 0", "must have an eps above 0", "training", "eps", 0)
fact("a training of eps NaN", "must have an eps above 0", "training", "eps", "NaN")
fact("a training of a std of 10^-12", "training must have stds", "training", "stds", [1e-12])
parts(
    "a training of a plan without",
    "has a training, and a plan without one",
    lambda p: p.facts.update(training={}),
    lambda: Parts.made_up(SMALL, FEW),
)
parts("10^9 updates", "updates must be a number from 1 to 1,000", lambda p: p.facts["plan"].update(updates=10**9))
parts("more updates than losses", "has training/loss of <f8 [2]", lambda p: p.facts["plan"].update(updates=3))
lacking("errors without a gradient", "must have 'loss'", "errors", "gradients", "loss")
fact("too few errors of the trajectory", "must be 3 numbers", "errors", "trajectory", [0.0])
fact("a trajectory of text", "must be a number", "errors", "trajectory", ["a", "b", "c"])
fact("a trajectory that is an object", "must be 3 numbers", "errors", "trajectory", {"0": 1})
lacking("sizes without a gradient", f"must have '{WEIGHT}'", "gradient_sizes", WEIGHT)
fact("a size below 0", "must not be below 0", "gradient_sizes", WEIGHT, -1)
fact("a size of 10^30", "must be a number", "gradient_sizes", WEIGHT, 1e30)
fact("an amplification of 0", "must be powers of two", "amplification", "seed0", "unet.dec.2x2_in0", 0)
fact("an amplification of no block", "must not have 'x'", "amplification", "seed0", "x", 2.0)
fact("an amplification of 3", "must be powers of two", "amplification", "seed0", "unet.dec.2x2_in0", 3)
fact("an amplification of nothing", "must be powers of two", "amplification", "seed0", "unet.dec.2x2_in0", "NaN")
fact("an amplification of no seed", "must not have", "amplification", "seed9", {})
fact("not finite where nothing is", "not_finite must be a list", "not_finite", ["nowhere"])
fact("not finite in numbers", "not_finite must be a list", "not_finite", [5])
fact("not finite by text", "not_finite must be a list", "not_finite", TAP)
fact("a repeat below 0", "repeat must not be below 0", "repeat", -1)
fact("a repeat of text", "repeat must be a number", "repeat", "never")
fact("seconds of text", "seconds must be a number", "seconds", "1 s")
lacking("an environment of no torch", "environment must have 'torch'", "environment", "torch")
fact("an environment of a long text", "of at most 1,000 characters", "environment", "processor", "x" * 2000)
fact("an environment of many values", "at most 100 values", "environment", "more", {str(i): i for i in range(200)})
lacking("switches without a problem", "must have a problem", "switches", "problem")
fact("a problem that is a list", "must have a problem, or null", "switches", "problem", [1])
fact("a problem of a long text", "of at most 1,000 characters", "switches", "problem", "x" * 10**5)
WIDE = dataclasses.replace(SMALL, label_dim=2000)
parts("a plan whose inputs are huge", "MB of inputs, and", lambda p: p.facts["plan"].update(batch=65536),
      lambda: Parts.made_up(WIDE, FEW))  # fmt: skip

BY_COMMAND = {  # as processes in `make test`
    "empty", "a pipe", "10^6 members", "a deflated member of 100 MB", "schema 1 as it was made", "nested 100,000 deep",
    "a shape of 10^9 numbers", "a plan with batch of 1000000000", "keys of no meaning",
}  # fmt: skip
FOR_COMMANDS = [case for case in INPUTS if case.name not in MEMBERS_READ]  # by `make hostile`
