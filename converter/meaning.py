"""What Python source means, as hashes: comments, docstrings and layout apart. Nothing of it is executed.

The text may be anybody's, and Python's parser is no judge of that: deep nesting has crashed it, and made it take
exponential time. It therefore parses in a separate process, with limits of time and memory. Hashes do not depend on
the version of Python: `_canonical` writes a syntax tree without what versions name or omit differently.
"""

import ast
import contextlib
import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import processes

MOST_BYTES = 2**18  # NVlabs' file has 15,000
CPU_SECONDS = 10
MEMORY = 2**30  # bytes of address space
LONGEST_NAME = 100
OUTSIDE = "the module's other statements"  # imports, assignments, whatever defines no function and no class

_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (*_DEFINITION, ast.ClassDef, ast.Module)
_WITHOUT_MEANING = ("ctx", "kind", "type_comment", "type_ignores")  # fields of nodes


class MeaningError(ValueError):
    """Text that is not compared. The message is a phrase: 'is no Python: ...'."""


@dataclass(frozen=True)
class Meaning:
    """Hashes (sha256) of a module's syntax tree and of its definitions.

    parts: by `function`, `Class` (but for its methods), `Class.method` and OUTSIDE. Who is defined again gets a number.
    """

    whole: str
    parts: dict[str, str]


def meaning_of(source: str) -> Meaning:
    """Parse the source of a module in a separate process. Raises: MeaningError."""
    text = source.encode("utf-8", "surrogatepass")
    if len(text) > MOST_BYTES:
        raise MeaningError(f"holds {len(text):,} bytes; {MOST_BYTES:,} are compared at most")
    done = subprocess.run(
        processes.python("from jax_edm2.converter.meaning import _main; _main()"),
        input=text, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=processes.environment(),
    )  # fmt: skip
    if done.returncode:
        raise MeaningError(f"cannot be parsed in {CPU_SECONDS} s and {MEMORY / 2**30:g} GB")
    answer = json.loads(done.stdout)
    if "problem" in answer:
        raise MeaningError(answer["problem"])
    return Meaning(**answer)


# In that process


def _main():
    _limit()
    try:
        tree = _parse(sys.stdin.buffer.read())
        answer = {"whole": _hash(tree), "parts": _parts(tree)}
    except (SyntaxError, ValueError) as error:
        answer = {"problem": f"is no Python: {getattr(error, 'msg', None) or error}"[:200]}
    except (RecursionError, MemoryError):
        answer = {"problem": "is nested too deep, or too large, to be compared"}
    print(json.dumps(answer))


def _limit():
    import resource

    for what, most in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # not on every system
            resource.setrlimit(what, (most, most))


def _parse(text: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it finds odd in the stranger's code
        return ast.parse(text.decode("utf-8"))  # as exec does with text: an encoding that it declares is a comment


def _parts(tree: ast.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    count: dict[str, int] = {}

    def add(name: str, *nodes: ast.AST):
        name = name[:LONGEST_NAME]
        count[name] = number = count.get(name, 0) + 1
        found[name if number == 1 else f"{name} ({number})"] = _hash(*nodes)

    outside = []
    for node in _body(tree):
        if isinstance(node, _DEFINITION):
            add(node.name, node)
        elif isinstance(node, ast.ClassDef):
            methods = [member for member in node.body if isinstance(member, _DEFINITION)]
            node.body = [member for member in node.body if not isinstance(member, _DEFINITION)]
            add(node.name, node)
            for method in methods:
                add(f"{node.name}.{method.name}", method)
        else:
            outside.append(node)
    add(OUTSIDE, *outside)
    return found


def _body(node) -> list[ast.stmt]:
    """Without the docstring."""
    match node.body:
        case [ast.Expr(ast.Constant(str())), *rest]:
            return rest
    return node.body


def _hash(*nodes: ast.AST) -> str:
    sha = hashlib.sha256()
    for node in nodes:
        for part in _canonical(node):
            sha.update(part.encode("ascii"))
    return sha.hexdigest()


def _canonical(value: object) -> Iterator[str]:
    """Two values give equal text if and only if they mean the same."""
    if isinstance(value, ast.Constant):
        yield _constant(value.value)
    elif isinstance(value, ast.AST):
        yield f"{type(value).__name__}("
        for name in sorted(value._fields):
            child = getattr(value, name, None)
            if name == "body" and isinstance(value, _DOCUMENTED):
                child = _body(value)
            elif isinstance(value, ast.JoinedStr):
                child = list(_joined(value.values))
            if child is not None and child != [] and name not in _WITHOUT_MEANING:
                yield f"{name}="
                yield from _canonical(child)
                yield ","
        yield ")"
    elif isinstance(value, list):
        yield "["
        for child in value:
            yield from _canonical(child)
            yield ","
        yield "]"
    else:  # an identifier, a small number, or nothing
        yield ascii(value)


def _constant(value: object) -> str:
    """repr depends on the version's Unicode, and refuses long integers."""
    if isinstance(value, float):
        text = value.hex()
    elif isinstance(value, complex):
        text = f"{value.real.hex()} {value.imag.hex()}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = hex(value)
    else:
        text = ascii(value)
    return f"{type(value).__name__}:{text}"


def _joined(values: Sequence[ast.expr]) -> Iterator[ast.expr]:
    """The parts of an f-string: versions differ in where they cut its text."""
    text = ""
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            text += value.value
            continue
        if text:
            yield ast.Constant(text)
        text = ""
        yield value
    if text:
        yield ast.Constant(text)
