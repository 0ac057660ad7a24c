"""The least versions of what we depend on are without the holes that are known, and CI installs no lesser ones."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from jax_edm2.converter.processes import ROOT

SAFE = {  # the first release without the hole
    "click": "8.3.3",  # CVE-2026-7246 (of click.edit, and disputed)
    "diffusers": "0.42.1",  # GHSA-4prv-5hj7-c2xr
    "filelock": "3.20.3",  # CVE-2026-22701
    "pillow": "12.3",  # CVE-2026-59197 to 59200; 13 is the first after CVE-2026-96641 was reported
    "pytest": "9.0.3",  # CVE-2025-71176
    "requests": "2.33",  # CVE-2026-25645
    "scikit-learn": "1.5",  # CVE-2024-5206
    "setuptools": "78.1.1",  # CVE-2025-47273
    "torch": "2.11",  # CVE-2026-24747, CVE-2026-4538
    "tqdm": "4.66.3",  # CVE-2024-34062
    "urllib3": "2.8",  # CVE-2026-97687, CVE-2026-97689: chunk sizes without end
}


def requirements():
    """All requirements of pyproject.toml but those on our own extras."""
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = text["project"]
    lists = [text["build-system"]["requires"], project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(line) for lines in lists for line in lines]
    return [requirement for requirement in found if requirement.name != project["name"]]


@pytest.mark.parametrize("name", SAFE)
def test_the_floor_is_without_known_holes(name):
    found = [requirement for requirement in requirements() if requirement.name == name]
    assert found
    for requirement in found:
        (floor,) = [Version(clause.version) for clause in requirement.specifier if clause.operator == ">="]
        assert floor >= Version(SAFE[name])


def test_what_ci_installs_fits():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
