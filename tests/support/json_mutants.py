"""Mutants of a sound JSON value, each the bytes of a text.

    for what, text in mutants(value, seed=0, count=300): ...

A value somewhere in it is exchanged for one of another type or size, or for another of its values; a key is dropped,
added, renamed or given twice; or the finished text is cut, joined or encoded otherwise. Some mutants mean the same as
the original.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

MARK = "\x00raw\x00"  # stands in the tree for text that json.dumps would not write
RAW = {
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a float beyond all": b"1e999",
    "a float of 200 digits": b"0." + b"3" * 200,
    "an integer of 5,000 digits": b"9" * 5000,
    "an integer of 30 digits": b"-" + b"9" * 30,
    "lists nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "objects nested 500 deep": b'{"a":' * 500 + b"1" + b"}" * 500,
    "lists that do not end": b"[" * 5000,
    "a lone surrogate": b'"\\ud800"',
    "a number with a zero in front": b"007",
    "a bare word": b"None",
    "bytes that are no UTF-8": b'"\xff\xfe"',
    "nothing": b"",
}
PLAIN = {
    "null": None,
    "true": True,
    "false": False,
    "0": 0,
    "1": 1,
    "-1": -1,
    "5": 5,
    "2^20": 2**20,
    "2^63": 2**63,
    "0.5": 0.5,
    "-0.0": -0.0,
    "1e-300": 1e-300,
    "1e300": 1e300,
    "3.0": 3.0,
    "an empty text": "",
    "text": "text",
    "a number as text": "1.5",
    "text with controls": "a\nb\x1b[31m\x9b\u202e\x7f",
    "text of 100,000 letters": "x" * 100_000,
    "a path": "../../etc/passwd",
    "no list": [],
    "a list of null": [None],
    "a list of lists": [[1], [[2]]],
    "a list of 10,000": [0] * 10_000,
    "no object": {},
    "an object": {"a": {"b": [1]}},
}


def mutants(value: Any, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` mutants: (what was done, the text)."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        if i % 4 == 3:
            yield _of_text(json.dumps(value).encode(), rng)
            continue
        tree = copy.deepcopy(value)
        what, raw = _of_tree(tree, rng, others=value)
        if not raw and places(tree) and rng.integers(4) == 0:  # now and then two at once
            also, raw = _of_tree(tree, rng, others=value)
            what = f"{what}, and {also}"
        text = json.dumps(tree, ensure_ascii=bool(rng.integers(2))).encode("utf-8", "surrogatepass")
        yield what, text.replace(json.dumps(MARK).encode(), raw)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a tree."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            found.append((node, key))
            if isinstance(child, dict | list):
                todo.append(child)
    return found


def _of_tree(tree: Any, rng, others: Any) -> tuple[str, bytes]:
    """Change a tree in one place. The bytes are what MARK stands for."""
    spots = places(tree)
    node, key = spots[rng.integers(len(spots))]
    name = f"{key!s:.40}"
    kind = rng.integers(8)
    if kind < 2:
        what = list(RAW)[rng.integers(len(RAW))]
        node[key] = MARK
        return f"{name} is {what}", RAW[what]
    if kind < 4:
        what = list(PLAIN)[rng.integers(len(PLAIN))]
        node[key] = copy.deepcopy(PLAIN[what])
        return f"{name} is {what}", b""
    if kind == 4:
        del node[key]
        return f"{name} is missing", b""
    if kind == 5 and isinstance(node, dict):
        other = str(rng.choice(["extra", "", "__class__", "x" * 1000, f"{key} ", str(key).upper()]))
        if rng.integers(2):
            node[other] = copy.deepcopy(node[key])
            return f"{other:.20} is there as well", b""
        node[other] = node.pop(key)
        return f"{name} is called {other:.20}", b""
    if kind == 6 and isinstance(node, dict):  # the same key twice, which a dict cannot hold
        node[MARK] = node[key]
        return f"{name} is there twice", json.dumps(str(key)).encode()
    if kind == 6:
        node[key] = [node[key]] * int(rng.choice([1, 2, 1000]))
        return f"{name} is a list of itself", b""
    there = places(others)
    node_there, key_there = there[rng.integers(len(there))]
    node[key] = copy.deepcopy(node_there[key_there])
    return f"{name} is what {key_there!s:.40} is", b""


def _of_text(text: bytes, rng) -> tuple[str, bytes]:
    """Change the bytes of a text."""
    at = int(rng.integers(len(text)))
    changes = {
        "cut": text[:at],
        "a bit flipped": text[:at] + bytes([text[at] ^ 1 << rng.integers(8)]) + text[at + 1 :],
        "a byte dropped": text[:at] + text[at + 1 :],
        "a byte more": text[:at] + bytes([rng.integers(256)]) + text[at:],
        "twice": text + text,
        "with an end": text + b"\0",
        "with a mark in front": b"\xef\xbb\xbf" + text,
        "in UTF-16": text.decode().encode("utf-16"),
        "in a list": b"[" + text + b"]",
        "with spaces": b" " * 1000 + text + b"\n" * 1000,
        "with a comma": text[:-1] + b"," + text[-1:],
        "with a comment": text + b" // sound",
        "in single quotes": text.replace(b'"', b"'"),
        "empty": b"",
        "null": b"null",
        "a number": b"5",
        "noise": rng.bytes(100),
    }
    what = list(changes)[rng.integers(len(changes))]
    return f"the text {what}", changes[what]
