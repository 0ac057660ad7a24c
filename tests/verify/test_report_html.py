"""report.html in a real browser: the verdict, the plots, and not one request beside the page itself."""

import base64
import http.server
import io
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jax_edm2.converter.verify.report.html import html
from jax_edm2.converter.verify.report.text import FED, markdown, terminal, to_json
from tests.corpora.faults import NETWORK

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
]


@pytest.fixture(scope="module")
def records(laboratory):
    """Reports on the correct network and on one with a fault."""
    fault = next(fault for fault in NETWORK if fault.name == "softmax over queries")
    good = laboratory.examine(None, ("parameters", "forward", "trajectory"))
    bad = laboratory.examine(fault, ("parameters", "forward", "trajectory"))
    return {"agrees": to_json(good), "disagrees": to_json(bad)}


class Outside(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            v for k, v in attrs if k in ("src", "href", "action", "data") and not (v or "").startswith("data:")
        ]
        assert tag not in ("script", "iframe", "object", "embed")


@pytest.mark.parametrize("verdict", ["agrees", "disagrees"])
def test_page_refers_to_nothing_outside(records, verdict):
    page = html(records[verdict])
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert "url(" not in page
    assert "@import" not in page


def test_a_fault_is_marked_everywhere(records):
    record = records["disagrees"]
    lines = list(terminal(record))
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("BAD unet.enc.4x4_block0 ") for line in lines)
    assert any("first bad operation: attention (softmax(q k) v)" in line for line in lines)
    assert any(line.startswith("~   unet.dec.4x4_in1") for line in lines)  # fed with something bad
    assert "- **guilty**: `unet.enc.4x4_block0`, attention" in markdown(record)


def open_in_browser(page: str, folder, *flags) -> tuple[str, list[str]]:
    """(standard output, paths requested) of Chromium opening the page from a server on loopback."""
    requested = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            body = page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/report.html"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", *flags, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    finally:
        server.shutdown()
        server.server_close()
    return done.stdout, requested


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("verdict", ["agrees", "disagrees"])
def test_in_a_browser(records, verdict, tmp_path):
    record = records[verdict]
    dom, requested = open_in_browser(html(record), tmp_path / "profile", "--dump-dom")
    assert requested == ["/report.html"]
    assert f"<h1>{verdict.capitalize()}</h1>" in dom
    plots = re.findall(r"<svg.*?</svg>", dom, re.DOTALL)
    assert len(plots) == 3
    taps = sum(len(row["operations"]) for row in record["tree"])
    for plot in plots[:2]:
        assert plot.count('<circle class="jax"') == plot.count('<circle class="torch"') == taps
    assert plots[2].count('<circle class="jax"') == len(record["trajectory"]["error"])
    assert (plots[0].count('class="bad"') > 0) == (verdict == "disagrees")
    assert dom.count("<details open") == min(len(record["guilty"]), 1)


def test_where_the_trajectory_ends(records):
    """Pictures of the truth, PyTorch, JAX and the difference; and what is allowed at every noise level."""
    for record in records.values():
        trajectory = record["trajectory"]
        assert list(trajectory["samples"])[:3] == ["truth", "PyTorch", "JAX"]
        assert list(trajectory["samples"])[3].startswith("JAX - truth, times ")
        truth, _, jax, difference = (pixels(uri) for uri in trajectory["samples"].values())
        assert (np.abs(truth.astype(int) - jax).max() > 3) == (record["verdict"] == "disagrees")
        assert max(difference.max(), 255 - difference.min()) >= 254  # enlarged to what can be seen
        assert len(trajectory["limit"]) == len(trajectory["sigmas"])
        assert html(record).count("<figure>") == 4


def pixels(uri):
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)


def test_the_head_says_when_and_how(records):
    record = records["agrees"] | {"command": "edm2-verify <digits.pkl>"}
    page = html(record)
    assert f"{record['date'][:10]} {record['date'][11:19]} UTC; " in page
    assert "<code>edm2-verify &lt;digits.pkl&gt;</code>" in page


def test_what_was_fed_wrong_is_not_red(records):
    page = html(records["disagrees"])
    assert f'<span class="unsure">\n  {FED}</span>' in page
    assert f'<span class="wrong">{FED}' not in page
    assert page.count('<span class="wrong">Guilty:</span>') == 1
