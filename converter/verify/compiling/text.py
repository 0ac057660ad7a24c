"""What the text of a compiled program says, as XLA prints it after all of its passes."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    bytes: int  # of its result
    line: str

    @property
    def op_name(self) -> str:
        """Where in the Python program it is from."""
        match = _NAME.search(self.line)
        return match[1] if match else ""


@dataclass
class Counts:
    """kernels: what a device starts, by kind. transposes: kernels that do nothing but change an order of axes, and
    their bytes. collectives: bytes by opcode, on one chip. cycles: the compiler's own estimate, by kind of operation
    and by block of the network; empty where it makes none. All of what a loop does is counted once for each turn."""

    kernels: Counter[str] = field(default_factory=Counter)
    transposes: int = 0
    transposed_bytes: int = 0
    collectives: Counter[str] = field(default_factory=Counter)
    cycles: Counter[str] = field(default_factory=Counter)
    cycles_by_block: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


def count(text: str) -> Counts:
    """Of a program's text."""
    computations, entry = _computations(text)
    counts = Counts()
    _count(computations, entry, 1, counts)
    return counts


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(match[1], match[3], _bytes(match[2]), line))
    return found, entry


def _bytes(shape: str) -> int:
    total = 0
    for kind, dims in _SHAPE.findall(shape):
        size = ITEM.get(kind, 1)
        for n in dims.split(","):
            size *= int(n) if n else 1
        total += size
    return total


FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id",
    "opt-barrier",
}  # fmt: skip


def _count(computations: dict[str, list[Instruction]], name: str, times: int, counts: Counts):
    for instruction in computations.get(name, []):
        opcode = instruction.opcode.removesuffix("-start")
        if opcode == "while":
            trips = _TRIPS.search(instruction.line)
            for below in _CALLS.findall(instruction.line):
                _count(computations, below, times * int(trips[1]) if trips else times, counts)
            continue
        if opcode in ("call", "conditional"):
            for below in _CALLS.findall(instruction.line):
                _count(computations, below, times, counts)
            continue
        if instruction.opcode in FREE or instruction.opcode.endswith("-done"):  # of what began elsewhere
            continue
        if opcode in COLLECTIVES:
            counts.collectives[opcode] += times * instruction.bytes
        kind = _kind(instruction, computations)
        counts.kernels[kind] += times
        if kind == "transpose":
            counts.transposes += times
            counts.transposed_bytes += times * instruction.bytes
        if cycles := _CYCLES.search(instruction.line):
            counts.cycles[kind] += times * int(cycles[1])
            counts.cycles_by_block[_block(instruction.op_name)] += times * int(cycles[1])


def _kind(instruction: Instruction, computations: dict[str, list[Instruction]]) -> str:
    """convolution, matrix product, transpose, copy, reduction, elementwise, a collective, or a library's call."""
    if instruction.opcode == "custom-call":
        target = _TARGET.search(instruction.line)
        return target[1] if target else "custom-call"
    inside = set(_opcodes(instruction, computations))
    for opcode, kind in (("convolution", "convolution"), ("dot", "matrix product"), ("reduce", "reduction")):
        if opcode in inside:
            return kind
    moved = inside - FREE - {"fusion", "convert"}
    if moved and moved <= {"transpose", "copy", "reshape"}:
        return "transpose" if "transpose" in moved else "copy"
    if instruction.opcode in ("fusion", *COLLECTIVES):
        return "elementwise" if instruction.opcode == "fusion" else instruction.opcode
    return instruction.opcode


def _opcodes(instruction: Instruction, computations: dict[str, list[Instruction]]) -> Iterator[str]:
    """Of an instruction, and of what is fused into it."""
    yield instruction.opcode
    if instruction.opcode == "fusion":
        for below in _CALLS.findall(instruction.line):
            for inner in computations.get(below, []):
                yield from _opcodes(inner, computations)


def _block(op_name: str) -> str:
    """The network's block that an operation is of: enc_64x64_block0."""
    parts = [part for part in op_name.split("/") if re.match(r"(enc|dec)_\d+x\d+_", part)]
    return parts[0] if parts else "elsewhere"
