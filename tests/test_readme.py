"""The README's Python runs as it stands, and its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=["sample", "use"])
def test_python_examples(code, digits_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(digits_checkpoint.parent)
    exec(code, {})
    (promised,) = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == promised


def test_the_picture_grid_is_what_its_command_draws(tmp_path, monkeypatch):
    (command,) = re.findall(r"^edm2-sample (.*--grid)$", README, re.MULTILINE)
    (tmp_path / "golden").symlink_to(ROOT / "golden")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "converter.cli.sample", *command.split()], check=True, env=environment)
    with Image.open("runs/sample/grid.png") as drawn, Image.open(ROOT / "golden" / "samples.png") as shown:
        difference = np.abs(np.asarray(drawn, int) - np.asarray(shown, int))
    assert difference.max() <= 1  # another processor rounds a pixel the other way, now and then
    assert (difference > 0).mean() < 1e-3


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test", "digits", "bench-convert", "sampling"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
