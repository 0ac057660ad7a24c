"""Reads pickles of NVlabs snapshots as inert records: nothing that the file names is imported, nothing in it is run.

An interpreter for the opcodes that such files contain (Python's `pickletools` is the format's documentation), with a
closed list of globals. A global is a name, calling one of the few known callables builds a record or a plain
container, and bytes are ranges of the file that are read when somebody asks. Everything else is refused.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .file import ByteRange, File, PickleError

# Far above what snapshots hold (XXL: 70,000 opcodes, 0.2 MB of text), low enough to bound time and memory.
MAX_STEPS = 400_000
MAX_TEXT = 8 * 2**20
MAX_LONG = 64


@dataclass(frozen=True)
class Global:
    """A name of the closed list."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


class Budget:
    """What one file may make a reader build, whatever builds it: an opcode is a step, and so is an item copied."""

    def __init__(self, steps: int = MAX_STEPS, text: int = MAX_TEXT):
        self.steps, self.text = steps, text

    def step(self, count: int = 1):
        """Raises: PickleError."""
        self.steps -= count
        if self.steps < 0:
            raise PickleError(f"holds more than {MAX_STEPS:,} opcodes and items; snapshots are far smaller")

    def read(self, length: int):
        """Raises: PickleError."""
        self.text -= length
        if self.text < 0:
            raise PickleError(f"holds more than {MAX_TEXT:,} bytes of text; snapshots are far smaller")


@dataclass(eq=False)
class Instance:
    """An object made with NEWOBJ: a module container (state set by BUILD) or a dict with attributes (items)."""

    cls: Global
    state: Any = None


def fill_instance(instance: Instance, state: Any):
    """What BUILD does to a module. Raises: PickleError."""
    if instance.state is not None or not isinstance(state, dict):
        raise PickleError(f"BUILD does not fit {instance.cls}")
    instance.state = state


_MARK = object()
_CONTAINERS = {"ema", "state", "_modules", "_parameters", "_buffers"}  # keys that are no part of a tensor's name
_AGAIN = "the file is incomplete: fetch it again"


class Interpreter:
    """One pickle, from `offset` of `file` up to byte `end`, with `globals_` as the closed list.

    calls: what REDUCE may call, by global; each gets the interpreter's file and the arguments.
    builds: what BUILD may fill in, by type of record.
    newobj: globals that NEWOBJ may instantiate; dicts: those of them whose instances SETITEM may fill.
    classes: further globals, by module and name, that NEWOBJ may instantiate, and nobody may call.
    persistent: what BINPERSID does; None refuses it.
    protocols: those that are read. keys: types of dictionaries' keys. window: how many bytes are read at a time.

    What has once been fetched from the memo is never changed again: whoever holds it has seen all of it. (Python's
    own unpickler shares what is changed later with some holders and not with others.)
    """

    def __init__(
        self,
        file: File,
        offset: int,
        end: int,
        *,
        globals_: frozenset[Global] = frozenset(),
        calls: dict[Global, Callable] | None = None,
        newobj: frozenset[Global] = frozenset(),
        dicts: frozenset[Global] = frozenset(),
        builds: dict[type, Callable] | None = None,
        persistent: Callable | None = None,
        budget: Budget | None = None,
        classes: Callable[[str, str], bool] = lambda module, name: False,
        protocols: tuple[int, ...] = (3, 4, 5),
        keys: tuple[type, ...] = (str,),
        window: int = 64 * 1024,
    ):
        self.file = file
        self.position = offset
        self.end = end
        self.globals = {(g.module, g.name): g for g in globals_}
        self.calls = calls or {}
        self.newobj, self.dicts, self.classes = newobj, dicts, classes
        self.builds = builds or {}
        self.changeable = {dict, list, Instance, *self.builds}  # by SETITEM, APPEND and BUILD
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.shared: dict[int, Any] = {}  # by identity: containers and records that were fetched from the memo
        self.budget = budget or Budget()
        self.protocols, self.keys = protocols, keys
        self.frame_end: int | None = None
        self.window_size = window
        self.window, self.window_start, self.window_end = b"", offset, offset

    # Reading

    def take(self, length: int) -> bytes:
        """The next `length` bytes, for opcodes and small arguments."""
        start = self.position
        self.position = stop = start + length
        if self.frame_end is not None and stop > self.frame_end:
            self.leave_frame(start)
        if stop > self.window_end:
            if stop > self.end:
                raise PickleError(f"breaks off at byte {self.end}, in the middle of a pickle; {_AGAIN}")
            self.window = self.file.read(start, min(max(self.window_size, length), self.end - start))
            self.window_start, self.window_end = start, start + len(self.window)
        offset = start - self.window_start
        return self.window[offset : offset + length]

    def skip(self, length: int, mutable: bool = False) -> ByteRange:
        """The next `length` bytes, left in the file."""
        start = self.position
        self.position = stop = start + length
        if self.frame_end is not None and stop > self.frame_end:
            self.leave_frame(start)
        if stop > self.end:
            raise PickleError(f"breaks off at byte {self.end}: {length} bytes should follow byte {start}; {_AGAIN}")
        return ByteRange(start, length, mutable)

    def leave_frame(self, position: int):
        if position != self.frame_end:
            raise PickleError(f"an argument straddles the end of a frame at byte {self.frame_end}")
        self.frame_end = None

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self, length: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(length), "little", signed=signed)

    def line(self) -> str:
        """Text up to the next newline, which arguments of GLOBAL end with."""
        text = b""
        while (byte := self.take(1)) != b"\n":
            text += byte
            if len(text) > 256:
                raise PickleError("the name of a global is longer than 256 bytes")
        return self.decode(text)

    def string(self, length: int) -> str:
        self.budget.read(length)
        return self.decode(self.take(length))

    def decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PickleError(f"text before byte {self.position} is not UTF-8") from error

    # Stack

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("an opcode takes a value from an empty stack")
        return self.stack.pop()

    def top(self, kind, what: str):
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError(f"{what} is applied to something else")
        self.check_unshared(self.stack[-1], what)
        return self.stack[-1]

    def check_unshared(self, value, what: str):
        if id(value) in self.shared:
            raise PickleError(f"{what} changes something after it was built and used")

    def pop_to_mark(self) -> list:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise PickleError("an opcode needs a MARK and there is none")

    # Running

    def run(self):
        """The pickle's value. `position` is then the byte after it. Raises: PickleError."""
        first = start = self.position
        code, budget = -1, self.budget
        while True:
            try:
                start = self.position
                budget.steps -= 1
                if budget.steps < 0:
                    budget.step(0)
                if start < self.window_end and start != self.frame_end:  # most opcodes; `byte` looks further
                    code = self.window[start - self.window_start]
                    self.position = start + 1
                else:
                    code = self.byte()
                if code == _STOP:
                    value = self.pop()
                    if self.stack:
                        raise PickleError("values are left on the stack at its end")
                    return value
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise PickleError(f"opcode {_name(code)} has no place in a snapshot")
                if code == _PROTO and start != first:
                    raise PickleError("PROTO is not the first opcode")
                operation(self)
            except PickleError as error:
                opcode = f"opcode {_name(code)}" if self.position > start else "the opcode"
                located = PickleError(f"{error} ({self.place()}{opcode} at byte {start})")
                located.texts = frozenset(value for value in self.memo.values() if isinstance(value, str))
                raise located from None

    def place(self) -> str:
        """Where in the object it is: the keys that wait for their values, in every dictionary that is being filled."""
        keys: list[str] = []
        level: list[Any] = []
        for value in [*self.stack, _MARK]:
            if value is _MARK:
                keys += [key for key in level[::2] if isinstance(key, str)][-1:]
                level = []
            else:
                level.append(value)
        named = [key[:40] for key in keys if key not in _CONTAINERS]
        return f"at {_printable('.'.join(named[-8:]))[1:-1]}, " if named else ""

    def proto(self):
        protocol = self.byte()
        if protocol not in self.protocols:
            raise PickleError(f"pickle protocol {protocol} is not supported")

    def frame(self):
        if self.frame_end is not None and self.position < self.frame_end:
            raise PickleError("a frame begins inside another frame")
        length = self.integer(8)
        if length > self.end - self.position:
            raise PickleError(f"breaks off at byte {self.end}, inside a frame of {length} bytes; {_AGAIN}")
        self.frame_end = self.position + length

    def put(self, key: int):
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError("there is nothing to memoise")
        if key > MAX_STEPS:  # Python's own unpickler would allocate all entries below
            raise PickleError(f"memo entry {key:,} is beyond any that is needed")
        self.memo[key] = self.stack[-1]

    def get(self, key: int):
        if key not in self.memo:
            raise PickleError(f"memo entry {key} is not set")
        value = self.memo[key]
        if type(value) in self.changeable:
            self.shared[id(value)] = value
        self.push(value)

    def global_(self, module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("the name of a global is no text")
        if (module, name) not in self.globals and self.classes(module, name):
            self.globals[module, name] = Global(module, name)
        if (module, name) not in self.globals:
            raise PickleError(f"global {_printable(f'{module}.{name}')} has no place in a snapshot")
        self.push(self.globals[module, name])

    def long(self, length: int):
        if length > MAX_LONG:
            raise PickleError(f"an integer of {length} bytes")
        self.push(self.integer(length, signed=True))

    def tuple_(self, count: int):
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def append(self, values):
        self.top(list, "APPEND").extend(values)

    def set_items(self, values):
        if len(values) % 2:
            raise PickleError("an odd number of keys and values")
        target = self.top((dict, Instance), "SETITEM")
        if isinstance(target, Instance):
            if target.cls not in self.dicts:
                raise PickleError(f"SETITEM is applied to {target.cls}")
            if target.state is None:
                target.state = {}
            target = target.state
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in self.keys:
                raise PickleError(f"a dictionary has a key of type {type(key).__name__}; snapshots have text only")
            if key in target:
                raise PickleError(f"a dictionary has the key {_printable(str(key))} twice")
            target[key] = value

    def reduce(self):
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or function not in self.calls or not isinstance(arguments, tuple):
            raise PickleError(f"{_describe(function)} is called, which has no place in a snapshot")
        try:
            self.push(self.calls[function](self.file, *arguments))
        except TypeError as error:
            raise PickleError(f"{function} is called with the wrong arguments") from error

    def new_object(self):
        arguments, cls = self.pop(), self.pop()
        known = isinstance(cls, Global) and (cls in self.newobj or self.classes(cls.module, cls.name))
        if not known or arguments != ():
            raise PickleError(f"{_describe(cls)} is instantiated, which has no place in a snapshot")
        self.push(Instance(cls))

    def build(self):
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        fill = self.builds.get(type(target))
        if fill is None:
            raise PickleError(f"BUILD is applied to {_describe(target)}")
        if isinstance(target, Instance) and target.cls in self.dicts:
            raise PickleError(f"BUILD does not fit {target.cls}")
        self.check_unshared(target, "BUILD")
        fill(target, state)

    def persistent_id(self):
        if self.persistent is None:
            raise PickleError("a persistent id has no place here")
        self.push(self.persistent(self.pop()))


def _name(code: int) -> str:
    return _NAMES.get(code) or f"0x{code:02x}"


def _printable(text: str) -> str:
    return ascii(text if len(text) <= 100 else text[:97] + "...")


def _describe(value) -> str:
    return str(value) if isinstance(value, Global) else f"a value of type {type(value).__name__}"


_PROTO, _STOP = 0x80, ord(".")

# Opcode -> (name, what it does). Names are those of pickletools.
_TABLE: dict[int, tuple[str, Callable[[Interpreter], Any]]] = {
    _PROTO: ("PROTO", Interpreter.proto),
    0x95: ("FRAME", Interpreter.frame),
    ord("("): ("MARK", lambda vm: vm.push(_MARK)),
    0x94: ("MEMOIZE", lambda vm: vm.put(len(vm.memo))),
    ord("q"): ("BINPUT", lambda vm: vm.put(vm.byte())),
    ord("r"): ("LONG_BINPUT", lambda vm: vm.put(vm.integer(4))),
    ord("h"): ("BINGET", lambda vm: vm.get(vm.byte())),
    ord("j"): ("LONG_BINGET", lambda vm: vm.get(vm.integer(4))),
    0x8C: ("SHORT_BINUNICODE", lambda vm: vm.push(vm.string(vm.byte()))),
    ord("X"): ("BINUNICODE", lambda vm: vm.push(vm.string(vm.integer(4)))),
    0x93: ("STACK_GLOBAL", lambda vm: vm.global_(*reversed([vm.pop(), vm.pop()]))),
    ord("c"): ("GLOBAL", lambda vm: vm.global_(vm.line(), vm.line())),
    ord(")"): ("EMPTY_TUPLE", lambda vm: vm.push(())),
    ord("t"): ("TUPLE", lambda vm: vm.push(tuple(vm.pop_to_mark()))),
    0x85: ("TUPLE1", lambda vm: vm.tuple_(1)),
    0x86: ("TUPLE2", lambda vm: vm.tuple_(2)),
    0x87: ("TUPLE3", lambda vm: vm.tuple_(3)),
    ord("}"): ("EMPTY_DICT", lambda vm: vm.push({})),
    ord("]"): ("EMPTY_LIST", lambda vm: vm.push([])),
    0x8F: ("EMPTY_SET", lambda vm: vm.push(frozenset())),
    ord("s"): ("SETITEM", lambda vm: vm.set_items([vm.pop(), vm.pop()][::-1])),
    ord("u"): ("SETITEMS", lambda vm: vm.set_items(vm.pop_to_mark())),
    ord("a"): ("APPEND", lambda vm: vm.append([vm.pop()])),
    ord("e"): ("APPENDS", lambda vm: vm.append(vm.pop_to_mark())),
    ord("R"): ("REDUCE", Interpreter.reduce),
    0x81: ("NEWOBJ", Interpreter.new_object),
    ord("b"): ("BUILD", Interpreter.build),
    ord("Q"): ("BINPERSID", Interpreter.persistent_id),
    ord("J"): ("BININT", lambda vm: vm.push(vm.integer(4, signed=True))),
    ord("K"): ("BININT1", lambda vm: vm.push(vm.byte())),
    ord("M"): ("BININT2", lambda vm: vm.push(vm.integer(2))),
    0x8A: ("LONG1", lambda vm: vm.long(vm.byte())),
    ord("G"): ("BINFLOAT", lambda vm: vm.push(struct.unpack(">d", vm.take(8))[0])),
    0x88: ("NEWTRUE", lambda vm: vm.push(True)),
    0x89: ("NEWFALSE", lambda vm: vm.push(False)),
    ord("N"): ("NONE", lambda vm: vm.push(None)),
    ord("C"): ("SHORT_BINBYTES", lambda vm: vm.push(vm.skip(vm.byte()))),
    ord("B"): ("BINBYTES", lambda vm: vm.push(vm.skip(vm.integer(4)))),
    0x8E: ("BINBYTES8", lambda vm: vm.push(vm.skip(vm.integer(8)))),
    0x96: ("BYTEARRAY8", lambda vm: vm.push(vm.skip(vm.integer(8), mutable=True))),
}
_OPERATIONS = {code: operation for code, (_, operation) in _TABLE.items()}
# The opcodes that are refused, so that errors can name them.
_NAMES = {code: name for code, (name, _) in _TABLE.items()} | {
    _STOP: "STOP",
    ord("0"): "POP",
    ord("1"): "POP_MARK",
    ord("2"): "DUP",
    ord("F"): "FLOAT",
    ord("I"): "INT",
    ord("L"): "LONG",
    ord("P"): "PERSID",
    ord("S"): "STRING",
    ord("T"): "BINSTRING",
    ord("U"): "SHORT_BINSTRING",
    ord("V"): "UNICODE",
    ord("d"): "DICT",
    ord("g"): "GET",
    ord("i"): "INST",
    ord("l"): "LIST",
    ord("o"): "OBJ",
    ord("p"): "PUT",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x8B: "LONG4",
    0x8D: "BINUNICODE8",
    0x90: "ADDITEMS",
    0x91: "FROZENSET",
    0x92: "NEWOBJ_EX",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}
