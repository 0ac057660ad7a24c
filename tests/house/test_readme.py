"""Python in README and docs/ runs as it stands (its training step in test_training), and what they name exists.

`make readme` runs its commands.
"""

import re

import pytest

from tests.surveys.readme import PAGES, ROOT, TEXT, commands, masked, shown_demo

EXAMPLES = [
    pytest.param(code, id=f"{page.stem} {number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
    if "print(" in code and "train_step" not in code  # which test_train_step runs
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_python_examples(code, digits_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(digits_checkpoint.parent)
    exec(code, {})
    (promised,) = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == promised


def test_commands_are_found():
    found = commands()
    tools = {"edm2-convert", "edm2-verify", "edm2-sample", "edm2-train", "edm2-dataset"}
    assert {command.split()[0] for command in found} == {"make", "pip", *tools}
    assert len(found) >= 15
    assert not any("#" in command for command in found)


def test_what_is_masked():
    assert masked("D: 4.5e-08   4.6e-08 in 3.2 s, 98.7 %, 63 tensors") == "D: # # in #, 98.7 %, 63 tensors"
    assert masked(shown_demo()).count("#") > 50


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", TEXT))
    assert {"demo", "test", "digits", "bench", "bench-convert", "sampling"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link
    assert page.parent == ROOT or f"docs/{page.name}" in (ROOT / "README.md").read_text()
