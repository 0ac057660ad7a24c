"""Inputs that are broken or hostile, by class and name: what each holds, and what edm2-convert must say to it."""

import io
import os
import pickle
import struct
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.corpora.hostile_pickles import (
    CONFIG,
    NUMEL,
    PROTO,
    RUN,
    SENTINEL,
    SHAPE,
    STRIDE,
    Built,
    Call,
    Raw,
    call,
    dumps,
    good,
    named,
    snapshot,
    storage,
    tensor,
    weight,
)
from torch_ref.network import Precond
from torch_ref.snapshot import EasyDict

ACCEPT = "accepted"


@dataclass(frozen=True)
class Input:
    """build(path) writes `file` into an empty folder, and `command` is run there. says: part of the one line, or ACCEPT."""

    kind: str
    name: str
    build: Callable[[Path], object]
    says: str
    command: tuple[str, ...] = ("edm2-convert", "input.pkl", "-o", "output.safetensors")
    file: str = "input.pkl"
    output: str | None = "output.safetensors"  # all that is made if it is accepted
    code: int = 2  # the exit code if it is not
    seconds: float = 5  # of CPU time
    megabytes: float = 200  # above what the imported code takes


INPUTS: list[Input] = []


def add(kind: str, name: str, says: str, content):
    """content: bytes, something to be pickled, or a function: of the path, or giving either."""

    def build(path):
        value = content(path) if callable(content) else content
        if value is not None:
            path.write_bytes(value if isinstance(value, bytes) else dumps(value))

    INPUTS.append(Input(kind, name, build, says))


NO_PLACE = "has no place in a snapshot"

# Code execution

CODE = "code execution"
add(CODE, "os.system by REDUCE", f"global 'posix.system' {NO_PLACE}", call)
add(CODE, "os.system in a network's arguments", "posix.system", snapshot(lambda n: n._init_kwargs.update(x=call())))
add(
    CODE,
    "os.system as a dictionary's key",
    "posix.system",
    lambda _: PROTO + b"}" + named("posix system") + RUN + b"\x85RK\x01s.",
)
for name in (
    "builtins eval", "builtins exec", "builtins getattr", "builtins __import__", "subprocess Popen",
    "importlib import_module", "_pickle loads", "operator attrgetter", "functools partial", "runpy run_path",
    "torch.serialization load", "torch.hub load", "numpy load", "collections Counter",
    "dnnlib.util open_url", "torch_utils.persistence persistent_class", "torch.nn.modules.linear Linear",
    "copyreg _reconstructor", "__builtin__ eval", "__main__ anything", "tests.surveys.hostile call",
):  # fmt: skip
    says = f"global '{name.replace(' ', '.')}' {NO_PLACE}"
    add(CODE, f"{name.replace(' ', '.')}", says, lambda _, name=name: EasyDict(ema=Call(name, "open('executed', 'w')")))
add(CODE, "INST", f"opcode INST {NO_PLACE}", PROTO + b"(" + RUN + b"iposix\nsystem\n.")
add(CODE, "OBJ and POP", f"opcode OBJ {NO_PLACE}", PROTO + b"(" + RUN + b"o0N.")
add(CODE, "NEWOBJ of a function", "is instantiated", PROTO + named("collections OrderedDict") + RUN + b"\x85\x81.")
add(CODE, "NEWOBJ_EX", f"opcode NEWOBJ_EX {NO_PLACE}", PROTO + named("collections OrderedDict") + b")}\x92.")
add(
    CODE,
    "BUILD with __setstate__",
    "BUILD does not fit dnnlib.util.EasyDict",
    lambda _: (
        PROTO
        + named("dnnlib.util EasyDict")
        + b")\x81}X\x0c\x00\x00\x00__setstate__"
        + named("dnnlib.util EasyDict")
        + b"sb."
    ),
)
add(
    CODE,
    "BUILD with a slot state",
    "BUILD does not fit torch.nn.modules.container.ModuleDict",
    lambda _: PROTO + named("torch.nn.modules.container ModuleDict") + b")\x81N}X\x09\x00\x00\x00__class__Ns\x86b.",
)
add(
    CODE,
    "BUILD of a function",
    "BUILD is applied to collections.OrderedDict",
    PROTO + named("collections OrderedDict") + b"}b.",
)
for i, argument in (1, b"\x01"), (2, b"\x01\x00"), (4, b"\x01\x00\x00\x00"):
    add(CODE, f"EXT{i}", f"opcode EXT{i} {NO_PLACE}", PROTO + bytes([0x81 + {1: 1, 2: 2, 4: 3}[i]]) + argument + b".")
add(CODE, "PERSID", f"opcode PERSID {NO_PLACE}", PROTO + b"Pposix.system\n.")
add(CODE, "BINPERSID outside of a storage", "a persistent id has no place here", PROTO + RUN + b"Q.")
add(
    CODE,
    "a dotted name",
    "global 'collections.OrderedDict.__init__'",
    PROTO + b"ccollections\nOrderedDict.__init__\n)R.",
)
add(
    CODE,
    "a dotted name by STACK_GLOBAL",
    "global 'collections.OrderedDict.fromkeys'",
    PROTO + b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93)R.",
)
add(CODE, "STACK_GLOBAL of numbers", "the name of a global is no text", PROTO + b"K\x01K\x02\x93.")
add(
    CODE,
    "STACK_GLOBAL of text from the memo",
    "global 'posix.system'",
    PROTO + b"\x8c\x06system\x94\x8c\x05posix\x94h\x01h\x00\x93" + RUN + b"\x85R.",
)
add(CODE, "a name with a line break", "global 'posix\\x0csystem.x'", PROTO + b"cposix\x0csystem\nx\n.")
add(CODE, "a payload, then a broken tail", "posix.system", lambda _: dumps(call())[:-1] + b"\xff\xff\xff")
add(CODE, "a second pickle after STOP", "follow the end of its pickle", lambda _: good() + dumps(call()))
add(CODE, "source that raises when it is run", ACCEPT, lambda _: good().replace(b"import math", b"raise 'm'  "))
add(
    CODE,
    "source that writes a file when it is run",
    ACCEPT,
    lambda _: good().replace(b"import torch\n", b"open('x','w')"),
)
add(
    CODE,
    "the result of REDUCE is called",
    "a value of type dict is called",
    PROTO + named("collections OrderedDict") + b")R)R.",
)
add(
    CODE,
    "a class of torch is called",
    "torch.HalfStorage is called",
    PROTO + named("torch HalfStorage") + b"K\x05\x85R.",
)
add(
    CODE,
    "wrong arguments of a known function",
    "is called with the wrong arguments",
    PROTO + named("torch._utils _rebuild_tensor_v2") + b")R.",
)
add(CODE, "hooks of a module", "has hooks (_forward_hooks)", snapshot(lambda n: n._forward_hooks.update(x=1)))
add(CODE, "hooks of a tensor", "hooks", weight(tensor(hooks={"x": 1})))
add(CODE, "hooks of a parameter", "hooks", weight(Call("torch._utils _rebuild_parameter", tensor(), False, {"x": 1})))


def shadow(path: Path):
    """Modules of the names that snapshots use, in the working folder: nobody must import them."""
    for name in ("dnnlib", "torch_utils"):
        (path.parent / name).mkdir()
        (path.parent / name / "__init__.py").write_text(f"open({SENTINEL!r}, 'w')")
    return good()


add(CODE, "modules of the same names lie beside the file", ACCEPT, shadow)

# The stream inside a tensor

NESTED = "nested payload"
tar = io.BytesIO()
tarfile.open(fileobj=tar, mode="w").close()
for name, value, says in (
    ("a zip file", Call("torch.storage _load_from_bytes", b"PK\x03\x04" + bytes(100)), "is a zip file, as torch.save writes"),
    ("TorchScript", Call("torch.storage _load_from_bytes", b"PK\x03\x04\x00\x00constants.pkl" + bytes(99)), "is a zip file"),
    ("a tar file", Call("torch.storage _load_from_bytes", tar.getvalue()), "opcode"),
    ("another pickle", Call("torch.storage _load_from_bytes", pickle.dumps({"a": 1})), "opcode"),
    ("a pickle that runs code", Call("torch.storage _load_from_bytes", dumps(call(), 2)), "global 'posix.system'"),
    ("a pickle of protocol 4", Call("torch.storage _load_from_bytes", dumps(1)), "pickle protocol 4 is not supported"),
    ("nothing", Call("torch.storage _load_from_bytes", b""), "breaks off"),
    ("text for bytes", Call("torch.storage _load_from_bytes", "text"), "data is not a byte string"),
    ("a module's persistent id", storage(pid=("module", Raw(named("torch HalfStorage")), "x.py", "source")), "is not a single storage"),
    ("a foreign global", storage(kind="posix system"), "global 'posix.system'"),
    ("code in the persistent id", storage(pid=("storage", Call("posix system", "touch executed"), "1", "cpu", NUMEL, None)), "posix.system"),
    ("a wrong magic number", storage(magic=5), "does not begin as torch.save's layout does"),
    ("a wrong protocol", storage(protocol=1002), "another protocol version than 1001"),
    ("big-endian", storage(system={"little_endian": False}), "is not little-endian"),
    ("no byte order", storage(system={}), "is not little-endian"),
    ("two numbers of elements", storage(count=NUMEL + 1), "announces 72 and 73 elements"),
    ("too few elements", storage(data=bytes(10)), "holds 10 bytes"),
    ("a negative number of elements", storage(numel=-1), "malformed storage description"),
    ("2^62 elements", storage(numel=2**62 - 1, count=2**62 - 1), "announces 4611686018427387903"),
    ("2^70 elements", storage(numel=2**70, count=0), "malformed storage description"),
    ("a float number of elements", storage(numel=72.0, count=72), "malformed storage description"),
    ("a wrong key", storage(keys=["2"]), "lists other storages"),
    ("an extra key", storage(keys=["1", "2"]), "lists other storages"),
    ("a key twice", storage(keys=["1", "1"]), "lists other storages"),
    ("no keys", storage(keys=[]), "lists other storages"),
    ("a view", storage(view=("1", 0, 72)), "malformed storage description"),
    ("trailing bytes", storage(tail=b"xx"), "holds 146 bytes"),
    ("a storage of float64", storage(kind="torch DoubleStorage", data=bytes(8 * NUMEL)), ACCEPT),
    ("a storage of bfloat16", storage(kind="torch BFloat16Storage"), ACCEPT),
    ("a storage of float64 with too few bytes", storage(kind="torch DoubleStorage", data=bytes(2 * NUMEL)), "72 elements of float64 and holds 144 bytes"),
    ("an untyped storage", storage(kind="torch.storage UntypedStorage"), "global 'torch.storage.UntypedStorage'"),
    ("location cuda:0", storage(location="cuda:0"), ACCEPT),
    ("location meta", storage(location="meta"), "was on the device 'meta', which keeps no values"),
    ("a location of nowhere", storage(location="../x"), "was on the device '../x'"),
    ("a location that is no text", storage(location=5), "malformed storage description"),
):  # fmt: skip
    add(NESTED, name, says, weight(tensor(value)))
for cut in (1, 14, 20, 60, 100, 130, 150, 200):
    add(
        NESTED,
        f"cut after {cut} bytes",
        "at unet.out_conv.weight",
        weight(tensor(storage(cut=cut))),
    )

# Exhaustion

EXHAUSTION = "exhaustion"


def deep_tuple(_path):
    return PROTO + b"})" + b"\x85" * 900_000 + b"K\x01s."


def deep_list(_path):
    return PROTO + b"]" * 400_000 + b"a" * 399_999 + b"."


def many_tensors(_path):
    one = dumps(tensor(storage(numel=1, data=b"\0\0"), 0, (1,), (1,)))[2:-1]
    return PROTO + b"(" + one * 20_000 + b"t."


def replayed(_path):
    """One sound payload, reduced again and again."""
    stored = storage().arguments[0]
    start = (
        PROTO
        + b"("
        + named("torch.storage _load_from_bytes")
        + b"\x94B"
        + struct.pack("<I", len(stored))
        + stored
        + b"\x85\x94"
    )
    return start + b"h\x00h\x01R" * 240_000 + b"t."


def sets(_path):
    """Copies of one long list."""
    texts = b"".join(b"\x8c\x04" + b"%04d" % i for i in range(9999))
    return PROTO + b"(" + named("builtins set") + b"\x94](" + texts + b"e\x94" + b"h\x00h\x01\x85R" * 120_000 + b"t."


def empty_tensors(_path):
    """One empty storage, made a tensor again and again."""
    start = (
        b"(" + named("torch._utils _rebuild_tensor_v2") + b"q\xc8" + dumps(storage(numel=0, data=b""))[2:-1] + b"q\xc9"
    )
    return PROTO + start + b"h\xc8(h\xc9K\x00K\x00\x85K\x01\x85\x89}tR" * 30_000 + b"t."


def padded_storages(_path):
    """Storages whose little pickles memoise the same number hundreds of times."""
    padding = b"q\x00" * 190
    one = storage().arguments[0].replace(b"M\xe9\x03.", b"M\xe9\x03" + padding + b".")
    assert padding in one
    one = b"B" + struct.pack("<I", len(one)) + one
    return (
        PROTO + b"(" + named("torch.storage _load_from_bytes") + b"\x94" + (b"h\x00" + one + b"\x85R") * 9_999 + b"t."
    )


def empty_modules(_path):
    return PROTO + b"(" + named("torch.nn.modules.container ModuleDict") + b"\x94" + b"h\x00)\x81" * 130_000 + b"t."


def exponential(made):
    value = (1,)
    for _ in range(60):
        value = (value, value)
    made._init_kwargs = {**CONFIG, "channel_mult": value}


def again(made):
    """A module list that holds itself."""
    modules = torch.nn.ModuleDict()
    modules._modules["again"] = modules
    made.unet._modules["again"] = modules


for name, data, says in (
    ("LONG_BINPUT of 2^28", PROTO + b"Nr" + struct.pack("<I", 2**28) + b".", "memo entry 268,435,456 is beyond any"),
    ("BINBYTES8 of 2^62", PROTO + b"\x8e" + struct.pack("<Q", 2**62), "bytes should follow byte 11"),
    ("BYTEARRAY8 of 2^62", PROTO + b"\x96" + struct.pack("<Q", 2**62), "bytes should follow byte 11"),
    ("BINBYTES of 2^32 - 1", PROTO + b"B" + struct.pack("<I", 2**32 - 1), "bytes should follow byte 7"),
    ("BINUNICODE of 2^32 - 1", PROTO + b"X" + struct.pack("<I", 2**32 - 1), "holds more than 8,388,608 bytes of text"),
    ("BINUNICODE8", PROTO + b"\x8d" + struct.pack("<Q", 2**40), f"opcode BINUNICODE8 {NO_PLACE}"),
    ("a huge FRAME", PROTO + b"\x95" + struct.pack("<Q", 2**63), "inside a frame of"),
    ("a FRAME that an argument straddles", PROTO + b"\x95" + struct.pack("<Q", 3) + b"NM\x01\x00NN.", "straddles the end of a frame"),
    ("a FRAME in a FRAME", PROTO + b"\x95" + struct.pack("<Q", 20) + b"\x95" + struct.pack("<Q", 1) + b"N" * 20, "inside another frame"),
    ("LONG4, huge", PROTO + b"\x8b" + struct.pack("<i", 2**31 - 1), f"opcode LONG4 {NO_PLACE}"),
    ("LONG4, negative", PROTO + b"\x8b" + struct.pack("<i", -5), f"opcode LONG4 {NO_PLACE}"),
    ("LONG1 of 255 bytes", PROTO + b"\x8a\xff" + b"\x7f" * 255 + b".", "an integer of 255 bytes"),
    ("LONG of a million digits", PROTO + b"L" + b"9" * 10**6 + b"L\n.", f"opcode LONG {NO_PLACE}"),
    ("a tuple nested 900,000 deep as a key", deep_tuple, "holds more than 400,000 opcodes and items"),
    ("lists nested 400,000 deep", deep_list, "holds more than 400,000 opcodes and items"),
    ("lists nested 190,000 deep", PROTO + b"]" * 190_000 + b"a" * 189_999 + b".", "holds no dictionary"),
    ("a tuple nested 390,000 deep as a key", PROTO + b"})" + b"\x85" * 390_000 + b"K\x01s.", "a key of type tuple"),
    ("an exponential tuple as a key", PROTO + b"})" + b"\x94h\x00\x86" * 1 + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(1, 60)) + b"K\x01s.", "a key of type tuple"),
    ("an exponential tuple in the configuration", snapshot(exponential), "not a value of type tuple"),
    ("integer keys that collide", PROTO + b"}(" + b"".join(b"\x8a\x0c" + (i * (2**61 - 1)).to_bytes(12, "little") + b"N" for i in range(50_000)) + b"u.", "a key of type int"),
    ("10,000,000 MARKs", PROTO + b"(" * 10_000_000, "holds more than 400,000 opcodes and items"),
    ("a bomb of DUPs", PROTO + b")" + b"2" * 10**6 + b".", f"opcode DUP {NO_PLACE}"),
    ("a bomb of GETs", PROTO + b"]\x94" + b"h\x00" * 390_000 + b".", "values are left on the stack"),
    ("a list that doubles itself", PROTO + b"]\x94" + b"(h\x00h\x00e" * 200_000 + b".", "APPEND changes something after it was built"),
    ("a list in itself", PROTO + b"]\x94h\x00a.", "APPEND changes something after it was built"),
    ("a dictionary in itself", PROTO + b"}\x94X\x03\x00\x00\x00emah\x00s.", "SETITEM changes something after it was built"),
    ("a state in itself", PROTO + named("torch.nn.modules.container ModuleDict") + b")\x81\x94}X\x01\x00\x00\x00ah\x00sb.", "BUILD changes something after it was built"),
    ("a module in itself", snapshot(again), "BUILD changes something after it was built"),
    ("a module in many places", snapshot(lambda n: [n.unet._modules.update({f"m{i}": n.unet.out_conv}) for i in range(99)]), "unet.m0"),
    ("20,000 tiny tensors", many_tensors, "holds more than 400,000 opcodes and items"),
    ("one payload 240,000 times", replayed, "is loaded twice"),
    ("120,000 sets of one list", sets, "a set that is not empty"),
    ("30,000 tensors of one empty storage", empty_tensors, "is made a tensor twice"),
    ("9,999 padded storages", padded_storages, "holds more than 400,000 opcodes and items"),
    ("130,000 empty modules", empty_modules, "it holds no dictionary"),
    ("300,000 empty sets", PROTO + b"(" + b"\x8f" * 300_000 + b"t.", "it holds no dictionary"),
    ("a range of 2^31 numbers", snapshot(lambda n: n._init_kwargs.update(channel_mult=range(2**31 - 1))), "a range of 2,147,483,647 numbers"),
    ("a range of more numbers than Python counts", snapshot(lambda n: n._init_kwargs.update(channel_mult=range(-(2**62), 2**62))), "a range of something other than integers"),
    ("a picture of 2^14 pixels' width", snapshot(lambda n: n._init_kwargs.update(img_resolution=2**14)), "img_resolution 16384 is too large for a network of"),
    ("8 MB of text in four bytes a letter", PROTO + b"(" + (b"X" + struct.pack("<I", 10**6) + "\U0001f600".encode() * 250_000) * 8 + b"t.", "it holds no dictionary"),
    ("integers of 64 bytes", PROTO + b"(" + (b"\x8a\x40" + b"\x7f" * 64) * 300_000 + b"t.", "it holds no dictionary"),
    ("GLOBAL without an end", PROTO + b"c" + b"a" * 10**6, "longer than 256 bytes"),
    ("70 MB of text", PROTO + b"(" + (b"X" + struct.pack("<I", 10**7) + b"a" * 10**7) * 7 + b"t.", "holds more than 8,388,608 bytes of text"),
    ("a key of 1 MB", EasyDict({"x" * 10**6: 1}), "it has no entry 'ema', only"),
    ("300,000 keys", EasyDict({str(i): 1 for i in range(300_000)}), "holds more than 400,000 opcodes and items"),
    ("100,000 keys", EasyDict({str(i): 1 for i in range(100_000)}), "has no entry 'ema', only '0', '1', '10'"),
    ("1,000 blocks", snapshot(lambda n: n._init_kwargs.update(num_blocks=1001)), "num_blocks must be an integer from 0 to 1000"),
    ("a resolution of 2^40", snapshot(lambda n: n._init_kwargs.update(img_resolution=2**40)), "img_resolution must be"),
    ("64 levels of 1,000 blocks", snapshot(lambda n: n._init_kwargs.update(num_blocks=1000, channel_mult=[1] * 20, img_resolution=2**19)), "make 40,040 blocks"),
):  # fmt: skip
    add(EXHAUSTION, name, says, data)

# Tensors

TENSORS = "tensors"


def array(code="f4", state=None, data=bytes(8), shape=(2,), fortran=False):
    """A numpy array in an encoder's scale, where snapshots have one."""
    dtype = Call("numpy dtype", code, False, True)
    if state is not None:
        dtype = Built(dtype, state)
    made = Call("numpy.core.multiarray _reconstruct", Raw(named("numpy ndarray")), (0,), b"b")
    return Built(made, (1, shape, dtype, fortran, data))


SOUND = (3, "<", None, None, None, -1, -1, 0)


def special(made):
    made.unet.out_conv.weight.flatten()[:3] = torch.tensor([np.nan, np.inf, -np.inf])


def parameter(made):
    made.unet.out_conv.weight = torch.nn.Parameter(made.unet.out_conv.weight.detach().transpose(2, 3))


for name, value, says in (
    ("a negative dimension", tensor(shape=(-2, 4, 3, 3)), "malformed storage, shape or stride"),
    ("a dimension that is true", tensor(shape=(True, 4, 3, 3)), "malformed storage, shape or stride"),
    ("a dimension that is a float", tensor(shape=(2.0, 4, 3, 3)), "malformed storage, shape or stride"),
    ("a product that overflows", tensor(shape=(2**61, 2**61, 2**61, 4)), "is not the whole of its storage"),
    ("65 dimensions", tensor(shape=(1,) * 65, stride=(1,) * 65), "malformed storage, shape or stride"),
    ("100,000 dimensions", tensor(shape=(1,) * 10**5, stride=(1,) * 10**5), "malformed storage, shape or stride"),
    ("a negative stride", tensor(stride=(36, 9, 3, -1)), "malformed storage, shape or stride"),
    ("overlapping strides", tensor(stride=(0, 9, 3, 1)), "is not contiguous"),
    ("strides out of range", tensor(stride=(3600, 9, 3, 1)), "is not contiguous"),
    ("transposed", tensor(stride=(36, 9, 1, 3)), "is not contiguous"),
    ("fewer strides than dimensions", tensor(stride=(9, 3, 1)), "malformed storage, shape or stride"),
    ("an offset", tensor(offset=4), "is not the whole of its storage"),
    ("a negative offset", tensor(offset=-4), "is not the whole of its storage"),
    ("a part of its storage", tensor(shape=(1, 4, 3, 3)), "is not the whole of its storage"),
    ("more than its storage", tensor(shape=(3, 4, 3, 3)), "is not the whole of its storage"),
    ("a shape that is a list", tensor(shape=[2, 4, 3, 3]), "malformed storage, shape or stride"),
    ("a shape that is text", tensor(shape="2433"), "malformed storage, shape or stride"),
    ("requires_grad of 1", tensor(None, 0, SHAPE, STRIDE, 1), "malformed requires_grad"),
    ("a negative view", tensor(None, 0, SHAPE, STRIDE, False, None, {"neg": True}), "conjugate or negative view"),
    ("no storage", tensor(5), "malformed storage, shape or stride"),
    ("int64", tensor(storage(kind="torch LongStorage")), "global 'torch.LongStorage'"),
    ("complex", tensor(storage(kind="torch ComplexFloatStorage")), "global 'torch.ComplexFloatStorage'"),
    ("quantised", tensor(name="_rebuild_qtensor"), "global 'torch._utils._rebuild_qtensor'"),
    ("meta", tensor(name="_rebuild_meta_tensor_no_storage"), "global 'torch._utils._rebuild_meta_tensor_no_storage'"),
    ("sparse", tensor(name="_rebuild_sparse_tensor"), "global 'torch._utils._rebuild_sparse_tensor'"),
    ("a wrapped subclass", tensor(name="_rebuild_wrapper_subclass"), "global 'torch._utils._rebuild_wrapper_subclass'"),
    ("a number", 5, "unet.out_conv.weight is no tensor"),
    ("text", "text", "unet.out_conv.weight is no tensor"),
    ("a parameter of no tensor", Call("torch._utils _rebuild_parameter", 5, False, OrderedDict()), "is not a plain tensor"),
    ("zeros in plain order", tensor(), ACCEPT),
    ("float32 among float16", tensor(storage(kind="torch FloatStorage", data=bytes(4 * NUMEL))), ACCEPT),
):  # fmt: skip
    add(TENSORS, name, says, weight(value))
add(TENSORS, "NaN and infinities", ACCEPT, snapshot(special))
add(TENSORS, "a transposed parameter", "is not contiguous", snapshot(parameter))
for name, value, says in (
    ("an array of objects", array("O8", SOUND), "unsupported dtype 'O8'"),
    ("an array of records", array([("a", "f4")], SOUND), "unsupported dtype"),
    ("a dtype without a state", array("f4"), "malformed dtype or data"),
    ("a dtype of big-endian numbers", array("f4", (3, ">", *SOUND[2:])), "is not a plain little-endian one"),
    ("a dtype with a malformed state", array("f4", (3,)), "is not a plain little-endian one"),
    ("a dtype with fields", array("f4", (3, "<", None, ("a",), {"a": 1}, -1, -1, 0)), "is not a plain little-endian one"),
    ("an array with too few bytes", array("f4", SOUND, data=bytes(7)), "does not fit its 7 bytes"),
    ("an array with a negative dimension", array("f4", SOUND, shape=(-2,)), "malformed shape"),
    ("an array in Fortran's order", array("f4", SOUND, shape=(2, 1), fortran=True), "not C-ordered"),
    ("an array of a bytearray", array("f4", SOUND, data=Raw(b"\x96" + struct.pack("<Q", 8) + bytes(8))), "malformed state"),
    ("an array of version 2", Built(Call("numpy.core.multiarray _reconstruct", Raw(named("numpy ndarray")), (0,), b"b"), (2, (2,), Built(Call("numpy dtype", "f4", False, True), SOUND), False, bytes(8))), "malformed state"),
    ("a number of float16", Call("numpy.core.multiarray scalar", Built(Call("numpy dtype", "f2", False, True), SOUND), bytes(2)), "a numpy number is a float16"),
    ("a number with too few bytes", Call("numpy._core.multiarray scalar", Built(Call("numpy dtype", "f8", False, True), SOUND), bytes(4)), "does not fit its 4 bytes"),
    ("a number of objects", Call("numpy._core.multiarray scalar", Call("numpy dtype", "O8", False, True), bytes(8)), "unsupported dtype 'O8'"),
    ("an array that is text", array("f4", SOUND, data="xxxxxxxx"), "malformed state"),
):  # fmt: skip
    add(TENSORS, name, says, snapshot(encoder=value))

# Models

MODEL = "model"


def renamed(old, new):
    """A snapshot with a parameter under another name."""

    def edit(made):
        made.unet.out_conv._parameters = {new if k == old else k: v for k, v in made.unet.out_conv._parameters.items()}

    return snapshot(edit)


def class_named(name):
    def build(_path):
        cls = type(name, (Precond,), {"__module__": Precond.__module__})
        return EasyDict(ema=cls(**CONFIG).half())

    return build


def persistent(**changes):
    """A network whose persistence record differs."""

    def build(_path):
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": "Precond", "state": {}, **changes}
        return EasyDict(ema=Call("torch_utils.persistence _reconstruct_persistent_obj", meta))

    return build


def drop(made):
    del made.unet.out_conv._parameters["weight"]


def kwargs(**changes):
    return snapshot(lambda n: setattr(n, "_init_kwargs", {**CONFIG, **changes}))


for name, value, says in (
    ("a name with ../", renamed("weight", "../../x"), "+ unet.out_conv.'../../x'"),
    ("a name with NUL", renamed("weight", "a\0b"), "+ unet.out_conv.'a\\x00b'"),
    ("a name with a slash", renamed("weight", "a/b"), "+ unet.out_conv.'a/b'"),
    ("a name with a dot", renamed("weight", "we.ight"), "+ unet.out_conv.'we.ight'"),
    ("an empty name", renamed("weight", ""), "+ unet.out_conv.''"),
    ("a name of 1,000 letters", renamed("weight", "x" * 1000), "+ unet.out_conv.'xxx"),
    ("a name of surrogates", PROTO + b"}X\x03\x00\x00\x00\xed\xa0\x80K\x01s.", "is not UTF-8"),
    ("a name with a line break", renamed("weight", "a\nb"), "+ unet.out_conv.'a\\nb'"),
    ("a name in another script", renamed("weight", "gewicht_ä"), "+ unet.out_conv.'gewicht_\\xe4'"),
    ("a key twice", PROTO + b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x02s.", "has the key 'a' twice"),
    ("a number as a key", {1: 2}, "a key of type int; snapshots have text only"),
    ("a parameter is missing", snapshot(drop), "- unet.out_conv.weight [2, 4, 3, 3] is missing"),
    ("a parameter too many", snapshot(lambda n: n.unet.register_buffer("extra", torch.zeros(2))), "+ unet.extra [2] is not part of it"),
    ("a module is missing", snapshot(lambda n: n.unet._modules.pop("out_conv")), "- unet.out_conv.weight"),
    ("an unknown class", class_named("Denoiser"), "its network is of class 'Denoiser'"),
    ("EDM (2022)", class_named("EDMPrecond"), "is an EDM (2022) snapshot (EDMPrecond), not EDM2"),
    ("StyleGAN", class_named("Generator"), "is a StyleGAN snapshot (Generator), not EDM2"),
    ("StyleGAN's keys", {"G": 1, "D": 2, "G_ema": 3}, "is a StyleGAN snapshot, not EDM2"),
    ("an unknown version", persistent(version=7, state={"_init_args": (), "_init_kwargs": dict(CONFIG)}), "persistence version 7, not 6"),
    ("a version that is text", persistent(version="6"), "has a wrong entry 'version'"),
    ("a function for a class", persistent(type="function"), "has a wrong entry 'type'"),
    ("source that is no text", persistent(module_src=5), "has a wrong entry 'module_src'"),
    ("a state that is no dictionary", persistent(state=5), "has a wrong entry 'state'"),
    ("an unknown entry", persistent(more=5), "has a wrong entry 'more'"),
    ("an empty state", persistent(), "without constructor arguments"),
    ("no parameters", persistent(state={"_init_args": (), "_init_kwargs": dict(CONFIG)}), "has no _parameters"),
    ("arguments that contradict the shapes", kwargs(label_dim=7), "should be [8, 7]"),
    ("arguments that contradict the attributes", snapshot(lambda n: setattr(n, "sigma_data", 3)), "! sigma_data is 3, should be 0.5"),
    ("an unknown argument", kwargs(magic=1), "unknown arguments 'magic'"),
    ("a missing argument", snapshot(lambda n: n._init_kwargs.pop("img_channels")), "no 'img_channels'"),
    ("arguments given twice", snapshot(lambda n: setattr(n, "_init_args", (8,))), "contradict each other"),
    ("too many arguments", snapshot(lambda n: setattr(n, "_init_args", (1,) * 9)), "contradict each other"),
    ("sigma_data is NaN", kwargs(sigma_data=float("nan")), "sigma_data must be a number"),
    ("no levels", snapshot(lambda n: n._init_kwargs.update(channel_mult=[])), "channel_mult must not be empty"),
    ("text as a number", kwargs(model_channels="16"), "model_channels must be an integer"),
    ("no heads fit", kwargs(channels_per_head=3, model_channels=8), "do not divide into"),
    ("ema is absent", {"G": 1}, "it has no entry 'ema', only 'G'"),
    ("ema is a tensor", {"ema": tensor()}, "its entry 'ema' is no network"),
    ("ema is None", {"ema": None}, "its entry 'ema' is no network"),
    ("no dictionary", [1, 2], "it holds no dictionary"),
    ("a pickled string", b"\x80\x04\x8c\x05hello.", "it holds no dictionary"),
    ("SETITEM on a tensor", lambda _: dumps(tensor())[:-1] + b"K\x01K\x02s.", "SETITEM is applied to something else"),
    ("APPEND to a dictionary", PROTO + b"}K\x01a.", "APPEND is applied to something else"),
    ("an odd number of items", PROTO + b"}(X\x01\x00\x00\x00au.", "an odd number of keys and values"),
    ("SETITEMS without MARK", PROTO + b"}u.", "needs a MARK"),
    ("REDUCE of nothing", PROTO + b"R.", "from an empty stack"),
    ("GET of what was never put", PROTO + b"h\x05.", "memo entry 5 is not set"),
    ("values left on the stack", PROTO + b"}}.", "values are left on the stack"),
    ("no STOP", PROTO + b"}", "breaks off at byte 3"),
    ("an unknown opcode", PROTO + b"\xff.", f"opcode 0xff {NO_PLACE}"),
    ("PROTO 255", b"\x80\xff}.", "pickle protocol 255 is not supported"),
    ("PROTO in the middle", PROTO + b"}" + PROTO + b".", "PROTO is not the first opcode"),
    ("an empty file", b"", "is empty"),
    ("one byte", b"\x80", "breaks off at byte 1"),
    ("a web page", b"<!DOCTYPE html><html>", "is no pickle, but a web page"),
    ("text", b"hello world, hello", "is no pickle: it begins with"),
    ("a torch checkpoint", b"PK\x03\x04" + bytes(30), "is a zip file (a torch checkpoint"),
    ("a safetensors file", (20).to_bytes(8, "little") + b'{"__metadata__":{}}' + b" " * 9, "is a safetensors file, converted already"),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is no pickle: it begins with b'version https"),
    ("a gzipped snapshot", b"\x1f\x8b\x08\x00" + bytes(30), "is no pickle: it begins with"),
    ("a directory", lambda path: path.mkdir(), "is a directory"),
    ("a FIFO", lambda path: os.mkfifo(path), "is not a regular file"),
    ("a link to nothing", lambda path: path.symlink_to("nowhere"), "there is no such file"),
    ("a link to itself", lambda path: path.symlink_to(path.name), "cannot be opened"),
    ("a link to a device", lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    ("half of it", lambda _: good()[: len(good()) // 2], "inside a frame of"),
    ("all but its last byte", lambda _: good()[:-1], "inside a frame of"),
    ("one byte too many", lambda _: good() + b"\0", "1 bytes follow the end of its pickle"),
    ("as it should be", lambda _: good(), ACCEPT),
):  # fmt: skip
    add(MODEL, name, says, value)
