"""The README's Python runs as it stands (its training step in test_training), and its make targets exist.

`make readme` runs its commands.
"""

import re

import pytest

from tests.surveys.readme import README, ROOT, commands, masked, shown_demo

EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "print(" in code]


@pytest.mark.parametrize("code", EXAMPLES, ids=["sample", "command", "use"])
def test_python_examples(code, digits_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(digits_checkpoint.parent)
    exec(code, {})
    (promised,) = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == promised


def test_commands_are_found():
    found = commands()
    assert {command.split()[0] for command in found} == {"make", "pip", "edm2-convert", "edm2-verify", "edm2-sample"}
    assert len(found) >= 15
    assert not any("#" in command for command in found)


def test_what_is_masked():
    assert masked("D: 4.5e-08   4.6e-08 in 3.2 s, 98.7 %, 63 tensors") == "D: # # in #, 98.7 %, 63 tensors"
    assert masked(shown_demo()).count("#") > 50


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test", "digits", "bench", "bench-convert", "sampling"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
