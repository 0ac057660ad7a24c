"""Notebooks are stored as they were executed, whole and small. `make notebooks` executes them again."""

import json

import pytest

from tests.surveys.notebooks import FOLDER, NAMES, ROOT, apart

MOST_BYTES = 600_000  # of all together


def cells(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_all_are_executed_and_in_the_readme():
    assert sorted(f"{name}.ipynb" for name in NAMES) == sorted(path.name for path in FOLDER.iterdir() if path.suffix)
    assert sum(path.stat().st_size for path in FOLDER.glob("*.ipynb")) < MOST_BYTES
    readme = (ROOT / "README.md").read_text()
    assert [name for name in NAMES if f"(docs/notebooks/{name}.ipynb)" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_shows_something(name):
    assert [cell["execution_count"] for cell in cells(name)] == [*range(1, len(cells(name)) + 1)]
    for cell in cells(name):
        assert cell["outputs"], cell["source"]
        assert all(output.get("name", "stdout") == "stdout" for output in cell["outputs"]), "warnings"
        shown = "".join(
            "".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in cell["outputs"]
        )
        assert "/" not in shown, "paths are of one machine"


@pytest.mark.parametrize("name", NAMES)
def test_no_notebook_needs_torch(name):
    assert not any("torch" in "".join(cell["source"]) for cell in cells(name))


@pytest.mark.parametrize(
    ("stored", "found", "differs"),
    [
        ("loss 0.40 in 3.2 s", "loss 0.41 in 4.5 s", False),
        ("loss 0.40", "loss 0.50", True),
        ("least as 3", "least as 5", True),
        ("True", "False", True),
        ("", "a warning", True),
    ],
)
def test_what_is_another_text(stored, found, differs):
    assert apart(stored, found) == differs
