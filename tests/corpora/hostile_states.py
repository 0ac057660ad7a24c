"""Training states that are broken or hostile: as archives, as pickles, and in what they say; and folders of snapshots.

Each is given to edm2-convert, which is to make all of it into one file, or to edm2-phema.
"""

import dataclasses
import io
import itertools
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jax_edm2.converter.convert import checkpoint_tensors, describe
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.record import Encoder
from jax_edm2.safetensors_checkpoint import write_safetensors
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.corpora.hostile_pickles import SENTINEL
from tests.corpora.inputs import ACCEPT, Input
from tests.support.networks import network
from tests.support.states import TINY, Trained, save

INPUTS: list[Input] = []
ARCHIVE, PICKLE, STATE, RAW, BACK = "training zip", "training pickle", "training state", "raw snapshots", "way back"
COMMAND = ("edm2-convert", "input.pt", "-o", "output.safetensors")
WIDE = {key: value for key, value in TINY.items() if key != "channels_per_head"} | {"model_channels": 64}  # fits shapes
SMALL = {**WIDE, "model_channels": 4, "channel_mult": [1], "attn_resolutions": []}  # of few bytes


def add(kind: str, name: str, says: str, build: Callable[[Path], Any], command=COMMAND, file="input.pt", **more):
    INPUTS.append(Input(kind, name, build, says, command, file, **more))


# As an archive


def sound() -> bytes:
    file = io.BytesIO()
    Trained(SMALL).steps(1).save(file)
    return file.getvalue()


def members() -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(sound())) as archive:
        return [(info.filename.partition("/")[2], archive.read(info)) for info in archive.infolist()]


def packed(found: list[tuple[str, bytes]], folder: str = "x/", deflated: tuple[str, ...] = ()) -> bytes:
    """An archive of members, as another writer makes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in found:
            kind = zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there already
                archive.writestr(zipfile.ZipInfo(folder + name), data, kind)
    return file.getvalue()


def archive(name: str, says: str, content: Callable[[], bytes]):
    add(ARCHIVE, name, says, lambda path: path.write_bytes(content()))


def patched(at: Callable[[bytes], int], form: str, *values: Any) -> bytes:
    """A sound archive with other numbers at a place."""
    data = bytearray(packed(members()))
    struct.pack_into(form, data, at(bytes(data)), *values)
    return bytes(data)


def entry(data: bytes, number: int = 1) -> int:
    """Where the directory's entry of a member begins."""
    at = -1
    for _ in range(number + 1):
        at = data.index(b"PK\1\2", at + 1)
    return at


def local(data: bytes, number: int = 1) -> int:
    """Where a member's own header begins."""
    return struct.unpack_from("<I", data, entry(data, number) + 42)[0]


def end(data: bytes) -> int:
    return len(data) - 22


archive("of another writer", ACCEPT, lambda: packed(members()))
archive("cut in the middle", "is no whole zip archive", lambda: sound()[:9000])
archive("a byte short", "is no whole zip archive", lambda: sound()[:-1])
archive("a byte too long", "is no whole zip archive", lambda: sound() + b"\0")
archive("its first bytes alone", "is no whole zip archive", lambda: sound()[:4])
archive("a kilobyte in the midst missing", "is no zip archive of one piece", lambda: sound()[:4000] + sound()[5024:])
archive("a comment", "is no zip archive of one piece", lambda: patched(lambda d: end(d) + 20, "<H", 7))
archive("of two disks", "is no zip archive of one piece", lambda: patched(lambda d: end(d) + 4, "<H", 1))
archive("another count here", "is no zip archive of one piece", lambda: patched(lambda d: end(d) + 8, "<H", 9))
archive(
    "a directory of 4 GB", "is no zip archive of one piece", lambda: patched(lambda d: end(d) + 12, "<I", 2**32 - 1)
)
archive("a directory elsewhere", "is no zip archive of one piece", lambda: patched(lambda d: end(d) + 16, "<I", 0))
archive(
    "fewer members than listed",
    "between its members and its directory",
    lambda: patched(lambda d: end(d) + 8, "<2H", 9, 9),
)
archive("more members than listed", "its directory breaks off", lambda: patched(lambda d: end(d) + 8, "<2H", 999, 999))
archive("65,000 members", "65,000 members in a directory", lambda: patched(lambda d: end(d) + 8, "<2H", 65000, 65000))
archive("of nothing", "it has no data.pkl", lambda: packed([]).replace(b"PK\5\6", b"PK\5\6", 1).rjust(22, b"\0"))
archive("without a pickle", "it has no data.pkl", lambda: packed(members()[1:]))
archive("a deflated pickle", "'x/data.pkl' compressed", lambda: packed(members(), deflated=("data.pkl",)))
archive("a deflated storage", "'x/data/3' compressed", lambda: packed(members(), deflated=("data/3",)))
archive(
    "a bomb",
    "'x/data/9999' compressed",
    lambda: packed([*members(), ("data/9999", bytes(10**8))], deflated=("data/9999",)),
)
archive("encrypted", "compressed or encrypted", lambda: patched(lambda d: entry(d) + 8, "<H", 1))
archive("a member twice", "twice", lambda: packed([*members(), members()[-1]]))
archive("a name that climbs", "whose name is no path inside", lambda: packed([*members(), ("../../evil", b"x")]))
archive("an absolute name", "whose name is no path inside", lambda: packed(members(), folder="/etc/"))
archive("a name with a backslash", "whose name is no path inside", lambda: packed([*members(), ("a\\..\\b", b"x")]))
archive("a name with a newline", "whose name is no path inside", lambda: packed([*members(), ("a\nb", b"x")]))
archive("a name of terminal codes", "whose name is no path inside", lambda: packed([*members(), ("\x1b[2J", b"x")]))
archive(
    "two folders",
    "outside its folder",
    lambda: packed([*members(), ("x/y", b"")], folder="").replace(b"data.pkl", b"a/ta.pkl"),
)
archive("no folder", "outside its folder", lambda: packed(members(), folder="").replace(b"byteorder", b"byte/rder"))
archive("members that overlap", "members overlap or leave gaps", lambda: patched(lambda d: entry(d, 4) + 42, "<I", 0))
archive("another name in its header", "under another name", lambda: patched(lambda d: local(d) + 30, "<c", b"y"))
archive(
    "another size in its header", "unlike that of its directory", lambda: patched(lambda d: local(d) + 18, "<2I", 3, 3)
)
archive(
    "another method in its header", "unlike that of its directory", lambda: patched(lambda d: local(d) + 8, "<H", 8)
)
archive(
    "another checksum in its header", "unlike that of its directory", lambda: patched(lambda d: local(d) + 14, "<I", 1)
)
archive(
    "a size of 4 GB",
    "without its size in 64 bits",
    lambda: patched(lambda d: entry(d) + 20, "<2I", 2**32 - 1, 2**32 - 1),
)
archive(
    "a size beyond the file",
    "unlike that of its directory",
    lambda: patched(lambda d: entry(d) + 20, "<2I", 2**31, 2**31),
)
archive("packed and plain sizes differ", "in pieces", lambda: patched(lambda d: entry(d) + 20, "<2I", 1, 2))
archive("on another disk", "in pieces", lambda: patched(lambda d: entry(d) + 34, "<H", 3))


def wrong_checksum(member: str) -> bytes:
    """The member's bytes are altered, as a disk does it; or its checksum is, which is the same."""
    data = dict(members())[member]
    old, new = struct.pack("<I", zlib.crc32(data)), struct.pack("<I", zlib.crc32(data) ^ 1)
    return packed(members()).replace(old, new)


archive("a pickle with another checksum", "its data.pkl does not have its checksum", lambda: wrong_checksum("data.pkl"))
archive(
    "a storage with another checksum",
    "does not have its checksum; fetch the file again",
    lambda: wrong_checksum("data/3"),
)
archive("big-endian", "is not little-endian", lambda: with_member("byteorder", b"big"))
archive("a byteorder of terminal codes", "is not little-endian", lambda: with_member("byteorder", b"\x1b[31m"))


def with_member(name: str, data: bytes) -> bytes:
    return packed([(found, data if found == name else old) for found, old in members()])


# As a pickle


def pickle(name: str, says: str, data: bytes | Callable[[bytes], bytes]):
    def build(path: Path):
        old = dict(members())["data.pkl"]
        path.write_bytes(with_member("data.pkl", data(old) if callable(data) else data))

    add(PICKLE, name, says, build)


def called(module: str, name: str, argument: str) -> bytes:
    text = argument.encode()
    return b"\x80\x02c%s\n%s\nX%s%s\x85R." % (module.encode(), name.encode(), struct.pack("<I", len(text)), text)


pickle("runs a command", "global 'os.system' has no place", called("os", "system", f"touch {SENTINEL}"))
pickle("evaluates", "global 'builtins.eval' has no place", called("builtins", "eval", f"open({SENTINEL!r},'w')"))
pickle("imports", "global 'importlib.import_module'", called("importlib", "import_module", "antigravity"))
pickle("loads another file", "global 'torch.load' has no place", called("torch", "load", "/etc/passwd"))
pickle(
    "a snapshot's storage", "global 'torch.storage._load_from_bytes'", called("torch.storage", "_load_from_bytes", "x")
)
pickle("a pickle of protocol 4", "pickle protocol 4 is not supported", lambda old: b"\x80\x04" + old[2:])
pickle("cut", "breaks off", lambda old: old[:2000])
pickle("more behind its end", "something behind its end", lambda old: old + b"N.")
pickle("9 MB", "those of training states are far smaller", lambda old: b"\x80\x02" + b"N0" * (9 * 2**19) + b"N.")
pickle("nothing", "is no training state of EDM2: it is no dictionary", b"\x80\x02N.")
pickle("a dictionary of numbers", "it has no state", b"\x80\x02}K\1K\2s.")
pickle("lists that double", "changes something after it was built", b"\x80\x02]q\x00" + b"(h\x00h\x00e" * 2 + b".")
pickle("half a million items", "opcodes and items", b"\x80\x02(" + b"N" * 500_000 + b"t.")
pickle("deep", "it is no dictionary", b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b".")
pickle(
    "a storage of integers",
    "global 'torch.IntStorage' has no place",
    lambda o: o.replace(b"FloatStorage", b"IntStorage"),
)
pickle(
    "another key of a storage",
    "the storage data/1 is used twice",
    lambda o: o.replace(b"X\1\0\0\0002", b"X\1\0\0\0001", 1),
)
pickle(
    "a key that climbs", "described in an unknown way", lambda old: old.replace(b"X\1\0\0\0002", b"X\4\0\0\0../2", 1)
)
pickle(
    "a storage that is missing",
    "the storage data/9999 is missing",
    lambda o: o.replace(b"X\1\0\0\0002", b"X\4\0\0\x009999", 1),
)
pickle("on the device meta", "was on the device 'meta'", lambda old: old.replace(b"X\3\0\0\0cpu", b"X\4\0\0\0meta", 1))
pickle("on cuda:0", ACCEPT, lambda old: old.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0", 1))
pickle("more elements than there are", "should hold", lambda old: old.replace(b"K\x04t", b"K\x05t", 1))
pickle("a tensor that begins later", "is not the whole of its storage", lambda o: o.replace(b"QK\0", b"QK\1", 1))
pickle("a numpy number of objects", "unsupported dtype 'O8'", lambda old: old.replace(b"X\2\0\0\0f8", b"X\2\0\0\0O8"))
pickle(
    "a numpy number of nine bytes", "does not fit its 8 bytes", lambda old: old.replace(b"X\2\0\0\0f8", b"X\2\0\0\0f4")
)
pickle("bytes in another encoding", "written in an unknown way", lambda old: old.replace(b"latin1", b"rot_13"))
pickle("a tensor built", "BUILD", lambda old: old.replace(b"_metadata", b"_metadat0"))


# In what it says


def state(name: str, says: str, change: Callable[[dict], object], kwargs=SMALL, options: Any = None):
    def build(path: Path):
        content = Trained(kwargs).steps(1).content()
        changed = change(content)
        save(content if changed is None else changed, path)
        if options is not None:
            text = options if isinstance(options, str) else json.dumps(options)
            path.with_name("training_options.json").write_text(text)

    add(STATE, name, says, build)


def group(**changes):
    return lambda content: content["optimizer"]["param_groups"][0].update(changes)


def net(name: str, value: Any):
    def change(content):
        if value is None:
            del content["net"][name]
        else:
            content["net"][name] = value

    return change


def of_state(**changes):
    return lambda content: content["state"].update(changes)


OPTIONS = {"network_kwargs": {"class_name": "training.networks_edm2.Precond", **SMALL}}
for key in ("img_resolution", "img_channels", "label_dim"):
    del OPTIONS["network_kwargs"][key]
NAN = float("nan")
state("sound", ACCEPT, lambda content: None)
state("sound, with its options", ACCEPT, lambda content: None, options=OPTIONS)
state("a tensor", "is no training state of EDM2: it is no dictionary", lambda content: torch.zeros(3))
state("a network alone", "it has no state", lambda content: content["net"])
state("without averages", "it has no ema", lambda content: content.pop("ema") and None)
state(
    "a network in float16", "in float16; training states are in float32", net("unet.out_gain", torch.tensor(1).half())
)
state("a network of numbers", "which is no tensor", net("unet.out_gain", 1.5))
state("a gain missing", "unet.out_gain [] is missing", net("unet.out_gain", None))
state("a weight too many", "+ unet.more [3] is not part of it", net("unet.more", torch.zeros(3)))
state("a name of terminal codes", "is not part of it", net("\x1b[2J" * 100, torch.zeros(3)))
state("no first convolution", "has no first convolution", net("unet.enc.8x8_conv.weight", None))
state("no embedding", "has no unet.emb_noise.weight of two axes", net("unet.emb_noise.weight", None))
state("weights of no size", "is impossible", net("unet.emb_noise.weight", torch.zeros(0, 4)))
state("weight decay", "its optimizer has weight_decay 0.1", group(weight_decay=0.1))
state("amsgrad", "its optimizer has amsgrad True", group(amsgrad=True))
state("betas above 1", "has no lr, betas and eps", group(betas=(0.9, 9.0)))
state("a learning rate that is NaN", "has no lr, betas and eps", group(lr=NAN))
state("parameters in another order", "does not count the network's", group(params=[1, 0]))
state("two groups", "not one group of parameters", lambda c: c["optimizer"]["param_groups"].append({}))
state("no step yet", "had training begun?", lambda content: content["optimizer"].update(state={}))
state("SGD", "is not Adam's", lambda content: content["optimizer"]["state"][0].pop("exp_avg_sq") and None)
state("moments of another shape", "is not like it", lambda c: c["optimizer"]["state"][1].update(exp_avg=torch.zeros(9)))
state("some steps more", "has taken more steps", lambda c: c["optimizer"]["state"][1].update(step=torch.tensor(7.0)))
state("half a step", "in an unknown way", lambda c: c["optimizer"]["state"][0].update(step=torch.tensor(0.5)))
state("a step that is NaN", "in an unknown way", lambda c: c["optimizer"]["state"][0].update(step=torch.tensor(NAN)))
state("a std of 2", "of no standard deviations", lambda content: content["ema"].update(stds=[2.0, 0.1]))
state("the same std twice", "not one average for each", lambda content: content["ema"].update(stds=[0.1, 0.1]))
state("an average missing", "not one average for each", lambda content: content["ema"]["emas"].pop() and None)
state(
    "an average of another network",
    "ema-0.050: its tensors are not",
    lambda c: c["ema"]["emas"][0].pop("unet.out_gain") and None,
)
state("-1 images", "has seen -1 images", of_state(cur_nimg=-1))
state("half an image", "has seen 0.5 images", of_state(cur_nimg=0.5))
state("NaN seconds", "in nan s", of_state(total_elapsed_time=NAN))
state("a loss of NaN", "has no P_mean, P_std and sigma_data", lambda content: content["loss_fn"].update(P_mean=NAN))
state("a record that is damaged", "metadata is not a record", lambda content: {**content, "edm2": "{"})
state("a record that is a number", "its edm2 is no text", lambda content: {**content, "edm2": 7})
state("options that are no JSON", "give --config-from", lambda content: None, options="{")
state("options of another program", "has no network_kwargs of a Precond", lambda content: None, options={"a": 1})
state("options with unknown arguments", "the unknown argument 'depth'", lambda content: None,
      options={"network_kwargs": {**OPTIONS["network_kwargs"], "depth": 3}})  # fmt: skip
state("options of another network", "not those of the configuration in training_options.json", lambda content: None,
      options={"network_kwargs": {**OPTIONS["network_kwargs"], "num_blocks": 2}})  # fmt: skip
state("options that are impossible", "its configuration is impossible", lambda content: None,
      options={"network_kwargs": {**OPTIONS["network_kwargs"], "num_blocks": -2}})  # fmt: skip


# Folders of snapshots


def raw(name: str, says: str, *flags: str, files: dict[str, Any], std: str = "0.15"):
    """files: by name, the configuration of a network, or bytes."""

    def build(path: Path):
        path.mkdir()
        for number, (file, content) in enumerate(files.items()):
            if isinstance(content, bytes):
                (path / file).write_bytes(content)
            else:
                write_snapshot(path / file, network(content, number))

    command = ("edm2-phema", "--indir=input", "--outdir=output", f"--outstd={std}", *flags)
    add(RAW, name, says, build, command, "input", output="output")


def run(kimgs=(65, 131, 262), stds=("0.050", "0.100"), **more: Any) -> dict[str, Any]:
    return {f"run-{kimg:07d}-{std}.pkl": SMALL for kimg, std in itertools.product(kimgs, stds)} | more


raw("sound", ACCEPT, files=run())
raw("none", "has no snapshots with names such as", files={"README": b"nothing"})
raw("foreign files beside them", ACCEPT, files=run(**{"notes.txt": b"x", "run.pkl": b"x"}))
raw("of two runs", "has snapshots of several runs", files=run(**{"other-0000262-0.100.pkl": SMALL}))
raw("of another architecture", "is of another architecture", files=run(**{"run-0000262-0.050.pkl": WIDE}))
raw("one that is empty", "run-0000131-0.100.pkl: is empty", files=run(**{"run-0000131-0.100.pkl": b""}))
raw("one that runs a command", "global 'os.system' has no place",
    files=run(**{"run-0000131-0.100.pkl": b"\x80\4" + called("os", "system", f"touch {SENTINEL}")[2:]}))  # fmt: skip
raw("one that is a training state", "is a zip file", files=run(**{"run-0000131-0.100.pkl": b"PK\3\4" + bytes(99)}))
raw("a time that none has", "--outkimg 98: no snapshot is of that time", "--outkimg=98", files=run())
raw("a time that cannot be", "no training of EDM2 has a snapshot at 42", "--outkimg=42", files=run())
raw("a name with such a time", "no training of EDM2 has a snapshot at 42", files=run(kimgs=(42, 65)))
raw("a std twice", "are the same one", files=run(**{"run-0000131-0.1000.pkl": SMALL}))
raw("a std above all", "a std must be above 0 and below 0.289", files=run(), std="0.3")
raw("a std of 0", "a std must be above 0 and below 0.289", files=run(), std="0")
raw("a std that is NaN", "a std must be above 0 and below 0.289", files=run(), std="nan")
CLOSE = ("0.050", "0.050001")
raw("too much alike", "too much alike to tell them apart",
    files={f"run-{(65536 + 1024 * i) // 1000:07d}-{std}.pkl": SMALL for i in range(16) for std in CLOSE})  # fmt: skip
raw("none of the run", "has no snapshots with names such as xs-0134217", "--inprefix=xs", files=run())
raw("none of these stds", "has no snapshots", "--instd=0.2", files=run())


# The way back


def back(name: str, says: str, build: Callable[[Path], Any], *flags: str, output: str = "output.pkl"):
    command = ("edm2-convert", "input.safetensors", "-o", output, *flags)
    add(BACK, name, says, build, command, "input.safetensors", output=output)


def checkpoint(path: Path, kwargs=SMALL, **changes: Any) -> bytes:
    pkl = path.with_name("original.pkl")
    write_snapshot(pkl, network(kwargs))
    with read_snapshot(pkl) as snapshot:
        record = dataclasses.replace(describe(snapshot), **changes)
        write_safetensors(path, checkpoint_tensors(snapshot), record)
    return path.read_bytes()


def altered(path: Path):
    data = bytearray(checkpoint(path))
    data[-1] ^= 1
    path.write_bytes(data)


def like_another(path: Path):
    checkpoint(path)
    write_snapshot(path.with_name("original.pkl"), network(WIDE))


def unknown_encoder(path: Path):
    checkpoint(path, encoder=Encoder("MyEncoder"))


LIKE = ("--like", "original.pkl")
back("sound", ACCEPT, checkpoint)
back("sound, like its original", ACCEPT, checkpoint, *LIKE)
back("altered", "its tensors were altered", altered)
back("altered, like its original", "its tensors were altered", altered, *LIKE)
back("like another network", "is of another network than what is to be written like it", like_another, *LIKE)
back("like none", "none.pkl: there is no such file", checkpoint, "--like", "none.pkl")
back("like itself", "is a safetensors file", checkpoint, "--like", "input.safetensors")
back("an encoder of its own", "no source is known of the encoder MyEncoder", unknown_encoder)
back("an encoder of its own, like its original", ACCEPT, unknown_encoder, *LIKE)
back("no training state", "only a training state can be written as .pt", checkpoint, output="output.pt")
back("cut", "is no safetensors file", lambda path: path.write_bytes(checkpoint(path)[:500]))
