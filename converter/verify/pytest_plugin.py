"""What pytest gets from this package: `pytest --edm2-golden` runs the goldens beside a project's own tests.

Imports nothing until that is asked for: every pytest run of an environment loads this.
"""

from pathlib import Path

import pytest

NAME = "edm2-golden"


def pytest_addoption(parser: pytest.Parser):
    group = parser.getgroup("edm2-jax")
    group.addoption(
        f"--{NAME}", action="store_true", help="Run the goldens too: does this machine compute EDM2 as PyTorch does?"
    )
    group.addoption(f"--{NAME}-dir", metavar="DIR", type=Path, help="Those of a folder, in place of edm2-jax's own.")


@pytest.hookimpl(tryfirst=True)  # before -k and others choose
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]):
    """Add an item for each golden, and one for the records beside them, which have no network."""
    folder = config.getoption("edm2_golden_dir")
    if not config.getoption("edm2_golden") and folder is None:
        return
    from ..errors import ConverterError
    from .golden.check import FOLDER, find_goldens

    try:
        paths = find_goldens(folder or FOLDER)
    except ConverterError as error:
        raise pytest.UsageError(str(error)) from None
    for path in paths:
        items.append(GoldenItem.from_parent(session, name=f"{NAME}[{path.stem}]", golden=path))
    items.append(RecordsItem.from_parent(session, name=f"{NAME}[records]"))


class Disagrees(Exception):  # noqa: N818
    """What edm2-verify says of it."""


class _Item(pytest.Item):
    def repr_failure(self, excinfo, style=None):
        if isinstance(excinfo.value, Disagrees):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self):
        return "edm2-jax", None, self.name


class GoldenItem(_Item):
    """Hold this machine to one golden."""

    def __init__(self, *, golden: Path, **kwargs):
        super().__init__(**kwargs)
        self.golden = golden

    def runtest(self):
        from .golden.check import check_golden
        from .report.text import terminal, to_json
        from .truth import Truth
        from .verdict import AGREES

        with Truth(self.golden) as truth:
            outcome = check_golden(truth)
        if outcome.verdict != AGREES:
            raise Disagrees("\n".join(terminal(to_json(outcome))))


class RecordsItem(_Item):
    """Hold it to torch's random streams, and to EMA profiles."""

    def runtest(self):
        from .golden.check import check_records

        if wrong := [check for check in check_records() if not check.agrees]:
            raise Disagrees("\n".join(f"{c.name}: error {c.error:.1e}, allowed {c.limit:.1e}" for c in wrong))
