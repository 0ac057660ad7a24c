"""Command lines are the outermost layer: the libraries below know of none, and print in nobody's name."""

import ast
import subprocess

import pytest

from converter import processes
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


@pytest.mark.parametrize(
    "name", ["downloads.cache_contents", "conversion", "devices", "sample", "sample_request", "sources"]
)
def test_importing_the_library_starts_nothing(name):
    """What takes long is imported when it is needed."""
    code = (
        f"import sys, converter.{name};"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'click', 'flax', 'jax', 'jaxlib', 'numpy', 'PIL',"
        " 'requests', 'torch', 'tqdm'}))"
    )
    result = subprocess.run(processes.python(code), capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result
