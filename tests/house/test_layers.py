"""Command lines are the outermost layer: the libraries below know of none, and print in nobody's name."""

import ast
import subprocess

import pytest

from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT


def imported(path):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_only_command_lines_know_click():
    """Who may import whom among our own packages is import-linter's to check."""
    library = [path for path in (ROOT / "converter").rglob("*.py") if path.parent.name != "cli"]
    assert len(library) > 50
    assert [path for path in library if any(name.split(".")[0] == "click" for name in imported(path))] == []


def test_the_library_needs_no_tool():
    """By the names under which they are installed, which import-linter does not know: `from_pretrained` is the one."""
    tools = tuple(f"jax_edm2.{name}" for name in ("converter", "torch_ref", "golden"))
    found = {
        (path.name, name)
        for path in (ROOT / "jax_edm2").rglob("*.py")
        for name in imported(path)
        if name.startswith(tools)
    }
    assert found == {
        ("__init__.py", "jax_edm2.converter.errors"),  # for type checkers, and when they are asked for
        ("__init__.py", "jax_edm2.converter.pretrained"),
    }


@pytest.mark.parametrize(
    "name", ["downloads.cache_contents", "conversion", "devices", "sample", "drawing_request", "sources"]
)
def test_importing_the_library_starts_nothing(name):
    """What takes long is imported when it is needed."""
    code = (
        f"import sys, jax_edm2.converter.{name};"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'click', 'flax', 'jax', 'jaxlib', 'numpy', 'PIL',"
        " 'requests', 'torch', 'tqdm'}))"
    )
    result = subprocess.run(processes.python(code), capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result
