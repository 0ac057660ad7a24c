"""Snapshots whose bytes are hostile: they would run code, hide what they hold, or exhaust who reads them."""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import torch

from jax_edm2.torch_ref.snapshot import EasyDict
from tests.corpora.hostile_pickles import (
    CONFIG,
    NUMEL,
    PROTO,
    RUN,
    SENTINEL,
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
from tests.corpora.inputs import ACCEPT, Input, snapshot_input

INPUTS: list[Input] = []


def add(*described):
    INPUTS.append(snapshot_input(*described))


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
