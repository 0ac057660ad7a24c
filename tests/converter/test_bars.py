"""How far something is: seen on a terminal, and said now and then where there is none."""

import time

import pytest

from jax_edm2.converter import bars


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.02)


def test_lines_where_there_is_no_terminal(capsys):
    with bars.Bar(desc="digits", unit="evaluations", total=20) as bar:
        while "digits: 0 of 20 evaluations, " not in capsys.readouterr().err:  # while nothing is done yet
            time.sleep(0.02)
        bar.update(15)
        while "digits: 15 of 20 evaluations, " not in (said := capsys.readouterr().err):
            time.sleep(0.02)
    assert "\r" not in said
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_silence(capsys):
    with bars.Bar(desc="digits", unit="evaluations", total=20, silent=True) as bar:
        bar.update(15)
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
