"""Reports hold names, versions and errors from anywhere: nothing in them is markup; and JSON's numbers alone."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jax_edm2.converter.verify.golden import report as golden
from jax_edm2.converter.verify.golden.check import Exact
from jax_edm2.converter.verify.report.html import html
from jax_edm2.converter.verify.report.markup import markdown as md
from jax_edm2.converter.verify.report.markup import markdown_code
from jax_edm2.converter.verify.report.plots import Series, log_plot
from jax_edm2.converter.verify.report.text import markdown, share, terminal, to_json
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.messages import one_line
from jax_edm2.strict_json import clean, dumps
from tests.corpora.hostile_goldens import BALANCES
from tests.support.truths import Parts
from tests.surveys.fuzz_truths import STILL, Still

EVIL = (
    "<img src=x onerror=alert(1)>",
    "</title></style></script><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onclick='alert(1)",
    "a|b|c",
    "`code` ```",
    "[x](javascript:alert(1))",
    "![x](https://example.invalid/x.png)",
    "https://example.invalid/x",
    "*x* __x__ ~~x~~ #1 <!-- -->",
    "&lt;b&gt;",
    "one\n\n# two\r\n- three",
    "\x1b[31m\x9b31m\u202e\u2066\u200b\x7f\0",
    "\udcff\udc80",
)
ALL = " ".join(EVIL)


def outcome(monkeypatch, tmp_path, change=lambda facts: None, base=Parts.made_up):
    """What is found by a truth file whose facts were changed."""
    from jax_edm2.converter.verify.jax_side import examination, judgement

    monkeypatch.setattr(judgement, "jax_switches", lambda _: {"problem": None, "XLA_FLAGS": ALL})
    for name, value in STILL.items():
        monkeypatch.setattr(examination, name, value)
    parts, path = base(), tmp_path / "truth.npz"
    change(parts.facts)
    path.write_bytes(parts.archive())
    with Truth(path) as truth:
        return judgement.judge(Still(truth.config), truth)


def evil(facts):
    facts["snapshot"] = {"name": ALL, "sha256": None, "source": ALL, ALL: [ALL]}
    facts["environment"] = dict.fromkeys(("torch", "device", "processor", ALL), ALL)
    facts["switches"] = {"problem": ALL, ALL: ALL, "probes": {ALL: ALL}}


@pytest.fixture
def record(monkeypatch, tmp_path):
    found = to_json(outcome(monkeypatch, tmp_path, evil))
    found["checkpoint"] = found["snapshot"]["path"] = ALL
    found["warnings"] = found["reasons"] = [ALL]
    for g in found["guilty"]:
        g["why"] = ALL
    for m in (m for check in found["measurements"].values() for m in check):
        m["failure"] = ALL
    ways = {ALL: {"unavailable": ALL}}
    found["throughput"] = [
        {"batch": 1, "ended": ALL},
        {"batch": 1, "steps": 1, "rounds": 1, "ways": ways, "memory": {}, "ceiling": None},
    ]
    return found


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_nothing_in_html_is_markup(record, monkeypatch, tmp_path):
    page, plain = Tags(), Tags()
    text = html(record)
    page.feed(text)
    plain.feed(html(to_json(outcome(monkeypatch, tmp_path))))
    assert page.tags <= plain.tags | {"pre"}
    assert page.attributes <= plain.attributes | {"open"}
    assert text.encode("utf-8").decode().replace("\n", "").isprintable()
    assert "onerror" in text  # it is shown all the same


def test_nothing_in_markdown_is_markup(record):
    """Every line has the shape that it has with a name of no markup in it."""
    found = markdown(record)
    lines = [line for line in found.splitlines() if not line.startswith(("|", "    "))]
    rest = re.sub(r"</?code>|\*\*guilty\*\*|`[\w./: -]+`|^### |&#\d+;", "", "\n".join(lines), flags=re.MULTILINE)
    assert not set(rest) & set("<>[]*~|`#!\"'\\")
    table = [line for line in found.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {4}
    assert "://" not in re.sub(r"^    .*", "", found, flags=re.MULTILINE)
    assert all(line.isprintable() for line in found.splitlines())


@pytest.mark.parametrize("text", EVIL)
def test_names_in_markdown(text):
    for shown in (md(text), markdown_code(text)):
        assert "\n" not in shown
        assert not re.search(r"[*\[\]|!~\"'\\]|<(?!/?code>)|(?<!`)`(?!`).*``|://|(?<!&)#", shown)
    assert markdown_code("edm2-img512-s_2147.pkl") == "`edm2-img512-s_2147.pkl`"


def test_nothing_in_the_terminal_is_a_command(record):
    lines = [one_line(line) for line in terminal(record)]  # as `say` prints them
    assert all(line.isprintable() and len(line) <= 2000 for line in lines)


def test_json_has_no_other_numbers(monkeypatch, tmp_path):
    """Infinite conditions, errors that are no numbers, and figures of numpy's types."""

    def change(facts):
        for found in facts["errors"]["seed0"]["isolated"].values():
            found |= {"condition": "Infinity", "error": "NaN"}
        for found in facts["errors"]["gradients"].values():
            found |= {"condition": "NaN", "error": "Infinity"}
        facts["repeat"], facts["seconds"] = "Infinity", "NaN"

    found = outcome(monkeypatch, tmp_path, change)
    found.throughput = [{"batch": 1, "ended": "x", "rate": np.float32("nan"), "peak": np.int64(3), "all": math.inf}]
    record = json.loads(dumps(to_json(found)), parse_constant=pytest.fail)
    assert record["repeat"] is None
    assert (record["throughput"][0]["rate"], record["throughput"][0]["peak"]) == (None, 3)
    assert any(m["limit"] is None for m in record["measurements"]["forward"])
    assert min(map(share, record["measurements"]["forward"])) == 0
    assert [*terminal(record), markdown(record), html(record)]


def test_json_of_goldens(monkeypatch, tmp_path):
    found = outcome(monkeypatch, tmp_path, base=lambda: Parts.of(BALANCES))
    records = [Exact("x", math.nan, 1.0, "broken"), Exact("y", math.inf, np.float64(1))]
    text = dumps(golden.to_json([found], records))
    record = json.loads(text, parse_constant=pytest.fail)
    assert [each["error"] for each in record["records"]] == [None, None]
    assert "BAD y" in "\n".join(golden.terminal([found], records))


def test_clean():
    assert clean({1: (math.nan, np.float64(2), np.array([math.inf, 1.0]), True, None, "x", 2**70)}) == {
        "1": [None, 2.0, [None, 1.0], True, None, "x", 2**70]
    }


def test_plots_of_any_numbers():
    points = [(value, ALL) for value in (5e-324, 1e-300, 1.7e308, None, 0.0, 1.0)]
    tags = Tags()
    tags.feed(log_plot([Series("x", "jax", points)], [("a", 3), ("b", 3)], [0], ALL))
    assert tags.tags <= {"svg", "line", "text", "rect", "polyline", "circle", "title"}
    assert "nothing was measured" in log_plot([Series("x", "jax", [(None, "")])], [("a", 1)])
