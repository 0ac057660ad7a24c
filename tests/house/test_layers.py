"""Command lines are the outermost layer: the libraries below know of none, and print in nobody's name."""

import ast

import pytest

from converter.processes import ROOT

LIBRARY = [
    path
    for package in ("converter", "golden", "jax_edm2", "torch_ref")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.is_relative_to(ROOT / "converter" / "cli")
]


def imported(path):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_library_imports_a_command_line(path):
    outermost = [name for name in imported(path) if f"{name}.".startswith("converter.cli.")]
    assert outermost == []
    if path.is_relative_to(ROOT / "converter"):
        assert [name for name in imported(path) if name.split(".")[0] == "click"] == []
