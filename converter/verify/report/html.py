"""The report as one self-contained page: the verdict first, then what it rests on. It fetches nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..verdict import AGREES
from .markup import escape
from .plots import Series, log_plot
from .text import FED, KINDS, WORST, blame, check_lines, number, share, subject, throughput_lines, title

STYLE = """
:root { color-scheme: light dark; --text: #1d2330; --back: #fff; --soft: #667085; --line: #d9dde5; --card: #f6f7f9;
  --jax: #1668dc; --torch: #d9622b; --good: #18794e; --bad: #c62a2f; --unsure: #946800 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ec; --back: #14171c; --soft: #98a2b3; --line: #333a45;
  --card: #1c2027; --jax: #6cb1ff; --torch: #ff9a66; --good: #4cc38a; --bad: #ff7a7f; --unsure: #e2b340 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1120px;
  margin: 0 auto; padding: 24px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 18px; margin: 34px 0 6px }
p { margin: 6px 0; max-width: 92ch } code, pre, td.n, .mono { font-family: ui-monospace, monospace; font-size: 13px }
.verdict { border-left: 10px solid; padding: 12px 18px; background: var(--card); border-radius: 4px }
.verdict p { max-width: none }
.agrees { border-color: var(--good) } .disagrees { border-color: var(--bad) }
.inconclusive { border-color: var(--unsure) }
.agrees h1 { color: var(--good) } .disagrees h1 { color: var(--bad) } .inconclusive h1 { color: var(--unsure) }
.good { color: var(--good) } .wrong { color: var(--bad); font-weight: 600 } .soft { color: var(--soft) }
table { border-collapse: collapse; margin: 8px 0 } th { text-align: left; font-weight: 600 }
th, td { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap }
pre { background: var(--card); padding: 10px; overflow-x: auto } svg { width: 100%; height: auto }
.scroll { overflow-x: auto } .verdict p, code { overflow-wrap: anywhere } td code { overflow-wrap: normal }
.samples { display: flex; flex-wrap: wrap; gap: 14px } figure { margin: 6px 0 } figcaption { color: var(--soft) }
.samples img { image-rendering: pixelated; display: block } .unsure { color: var(--unsure) }
@media (max-width: 700px) { body { padding: 12px } .scroll svg { width: 860px } h1 { font-size: 22px } }
details { border-bottom: 1px solid var(--line); padding: 3px 0 }
summary { cursor: pointer; white-space: pre-wrap }
details details { border: 0 } .axis { font: 11px ui-monospace, monospace; fill: var(--soft) }
.grid { stroke: var(--line); stroke-width: 1 } rect.bad { fill: var(--bad); opacity: .25 }
polyline { fill: none; stroke-width: 1 } .jax { stroke: var(--jax) } .torch { stroke: var(--torch) }
circle.jax { fill: var(--jax); stroke: none } circle.torch { fill: var(--torch); stroke: none }
line.jax, line.torch { stroke-width: 3 } .limit { stroke: var(--soft); stroke-dasharray: 4 3; fill: none }
"""

EXPLAIN = {
    "parameters": "Every weight, gain and buffer of the JAX network equals the snapshot's, bit for bit in float32.",
    "forward": "Every operation of every block, fed with the truth (isolated) and with what came before it in JAX "
    "(accumulated); then the network compiled as a whole, as loaded and folded for sampling.",
    "gradients": "The gradient of the EDM2 loss by every parameter and by the noise, and every parameter and its "
    "average after one training step (forced weight normalisation, Adam, EMA).",
    "derivative": "The gradient by the noise of the EDM loss of D: of the denoiser as it is, whatever is inside.",
    "trajectory": "The state at every noise level of the deterministic Heun sampler, started from the same noise.",
    "training": "Steps of training by a recipe whose every setting shows in a few: losses, gradient norms, learning "
    "rates, and every parameter, its moments and its averages after the last step. JAX adds up gradients of two parts.",
}
EXPLAIN_GOLDEN = EXPLAIN | {
    "parameters": "Every weight, gain and buffer equals what the golden was recorded with, bit for bit in float32.",
    "forward": "D, logvar and the output of every block, of the network compiled as a whole.",
    "gradients": "The gradient of the EDM2 loss by every parameter and by the noise: its norm and random projections.",
    "training": EXPLAIN["training"] + " Of these, norms and random projections.",
}

EXPLAIN_PORT = EXPLAIN | {"forward": "D at every noise level, and logvar, if it is returned; compiled as a whole."}


def html(report: dict[str, Any]) -> str:
    """The page for a report.json record."""
    name = f"edm2-verify: {subject(report)} {title(report)}"
    sections = [
        _verdict(report),
        section("What was checked", _checks(report)),
        section("Error of every operation", _forward(report)),
        section("Module tree", _tree(report)),
        section(f"The {WORST} taps nearest to their limits", _worst(report, "forward")),
        section(f"The {WORST} gradients nearest to their limits", _worst(report, "gradients")),
        section(f"The {WORST} results of training nearest to their limits", _worst(report, "training")),
        section("The derivatives nearest to their limits", _worst(report, "derivative")),
        section("Trajectory", _trajectory(report)),
        section("Throughput", _throughput(report)),
        section("How it was run", _how(report)),
    ]
    return page(name, sections)


def page(name: str, sections: Iterable[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(name)}</title><style>{STYLE}</style></head><body>'
        f"{''.join(sections)}</body></html>\n"
    )


def index(record: dict[str, Any]) -> str:
    """The page for a record of goldens: the verdict, and links to the reports of all networks."""
    verdicts = {network: report["verdict"] for network, report in record["reports"].items()}
    rows = [
        (_mark(verdict == AGREES), f'<a href="{escape(network)}/report.html">{escape(network)}</a>', escape(verdict))
        for network, verdict in verdicts.items()
    ]
    checks = [
        (
            _mark(check["agrees"]), escape(check["network"]), escape(check["kind"]),
            f"<code>{escape(check['name'])}</code>", *(number(check[key]) for key in ("error", "measured", "limit")),
        )
        for check in record["checks"]
    ]  # fmt: skip
    exact = [
        (_mark(check["agrees"]), escape(check["name"]), number(check["error"]), number(check["limit"]))
        for check in record["records"]
    ]
    date = next(map(_date, record["reports"].values()), "")
    sections = [
        f'<div class="verdict {record["verdict"]}" id="verdict"><h1>{escape(record["verdict"].capitalize())}</h1>'
        f"<p><b>{escape(record['headline'])}</b></p><p class=soft>{escape(date)}</p></div>",
        section("Networks", table(("", "", ""), rows)),
        section(
            "Nearest to their limits", table(("", "network", "check", "", "JAX", "recorded", "allowed"), checks, 3)
        ),
        section("Records", table(("", "", "JAX", "allowed"), exact, 2)),
    ]
    return page(f"edm2-verify --golden: {record['verdict']}", sections)


def section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table of cells that are HTML; the last `numbers` columns are aligned to the right."""
    first = len(head) - numbers

    def row(cells, tag):
        return "<tr>" + "".join(
            f"<{tag}{' class=n' if i >= first else ''}>{cell}</{tag}>" for i, cell in enumerate(cells)
        ) + "</tr>"  # fmt: skip

    return f"<div class=scroll><table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table></div>"


UNSURE = '<span class="unsure">~</span>'


def _mark(good: bool) -> str:
    return '<span class="good">✓</span>' if good else '<span class="wrong">✗</span>'


def _verdict(report: dict[str, Any]) -> str:
    guilty = f'<p><span class="wrong">Guilty:</span> {escape(blame(report))}</p>' if report["guilty"] else ""
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in report["reasons"])
    warnings = "".join(f'<p class="soft">{escape(warning)}</p>' for warning in report["warnings"])
    other = report["checkpoint"] or report["port"]
    beside = f" and <code>{escape(other)}</code>" if other else ", converted in memory"
    if report["golden"]:
        beside = ", a golden"
    return (
        f'<div class="verdict {report["verdict"]}" id="verdict"><h1>{title(report, str.capitalize)}</h1>'
        f"<p><b>{escape(report['headline'])}</b>: <code>{escape(subject(report))}</code>{beside}; "
        f"{report['plan']['precision']}, JAX on {escape(report['environment']['JAX']['device'])}.</p>"
        f"<p class=soft>{_when(report)}</p>{guilty}{reasons}{warnings}</div>"
    )


def _date(report: dict[str, Any]) -> str:
    return report["date"].replace("T", " ").replace("+00:00", " UTC")


def _when(report: dict[str, Any]) -> str:
    """Date, duration and command."""
    parts = [_date(report)]
    if seconds := report["seconds"]["all"]:
        parts.append(f"{seconds:.0f} s")
    if report["command"]:
        parts.append(f"<code>{escape(report['command'])}</code>")
    return "; ".join(parts)


def _checks(report: dict[str, Any]) -> str:
    explain = EXPLAIN_GOLDEN if report["golden"] else EXPLAIN_PORT if report["port"] else EXPLAIN
    rows = [
        (_mark(verdict == AGREES), f"<b>{name}</b>", f'{escape(text)}<br><span class="soft">{explain[name]}</span>')
        for name, verdict, text in check_lines(report)
    ]
    t = report["tolerance"]
    error = "<p>The truth is the same network in PyTorch in float64. An error is ‖x - truth‖ / ‖truth‖. JAX agrees "
    if report["golden"]:
        return (
            table(("", "", ""), rows)
            + error
            + f"where it is at most {t['accumulated']:g} (forward), {t['gradient']:g} (gradients), "
            f"{t['trajectory']:g} (trajectory) or {t['training']:g} (training): three times "
            "what was measured when the golden was recorded.</p>"
        )
    return (
        table(("", "", ""), rows)
        + error
        + f"where its error is at most {t['k']:g} times PyTorch's own in {report['plan']['precision']}, or at most "
        f"{t['isolated']:g} (isolated) or {t['accumulated']:g} (accumulated), whichever is more, and not above "
        f"{t['ceiling']:g} times those floors, unless rounding explains more: {t['rounding']:g} times the condition "
        "number, which is how far a disturbance of every operation of the truth is carried.</p>"
    )


def _forward(report: dict[str, Any]) -> str:
    groups = [(_short(row["scope"]), len(row["operations"])) for row in report["tree"]]
    plots = []
    for kind, words in (
        ("isolated", "Isolated: each block is given the truth"),
        ("accumulated", "Accumulated: each framework continues with its own values"),
    ):
        rows = [(row["scope"], operation, operation[kind]) for row in report["tree"] for operation in row["operations"]]
        if not any(m for _, _, m in rows):
            continue

        def series(name, style, key, rows=rows):
            points = [
                (m[key], f"{scope}, {o['operation']} ({o['what']}): {name} {number(m[key])}") if m else (None, "")
                for scope, o, m in rows
            ]
            return Series(name, style, points)

        bad = [i for i, (_, _, m) in enumerate(rows) if m and not m["agrees"]]
        shown = [
            series("allowed", "limit", "limit"),
            series("PyTorch", "torch", "torch_error"),
            series("JAX", "jax", "error"),
        ]
        plot = log_plot(shown, groups, bad, f"{kind} errors")
        plots.append(f"<p>{words}.</p><div class=scroll>{plot}</div>")
    if not plots:
        return ""
    return "".join(plots) + '<p class="soft">Point at a dot to see which operation it is. Red: disagrees.</p>'


def _short(scope: str) -> str:
    return scope.removeprefix("unet.")


def _tree(report: dict[str, Any]) -> str:
    parts = []
    first = next((row["scope"] for row in report["tree"] if row["guilty"]), None)
    for row in report["tree"]:
        marks = [m for m in row["worst"].values() if m]
        if not marks:
            return ""
        fine = all(m["agrees"] for m in marks)
        state, style = ("guilty", "wrong") if row["guilty"] else ("" if fine else f"\n  {FED}", "unsure")
        mark = UNSURE if style == "unsure" and not fine else _mark(fine)
        cells = "".join(
            f"{kind}: JAX {number(m['error']):>7}, PyTorch {number(m['torch_error']):>7}   "
            for kind, m in row["worst"].items()
            if m
        )
        opened = " open" if row["scope"] == first else ""
        shown = [kind for kind in KINDS if row["worst"][kind]]
        head = [cell for kind in shown for cell in (f"{kind}: JAX", "PyTorch", "allowed")]
        operations = table(("", "operation", "", *head), [_operation(o, shown) for o in row["operations"]], len(head))
        parts.append(
            f'<details{opened}><summary class="mono">{mark} {escape(row["scope"]):<28} {cells}'
            f'<span class="{style}">{state}</span></summary>{operations}</details>'
        )
    return "<p>Open a block to see its operations. The errors are the largest in it.</p>" + "".join(parts)


def _operation(o: dict[str, Any], kinds: list[str]) -> list[str]:
    found = [o[kind] for kind in kinds]
    cells = [number(m[key]) if m else "-" for m in found for key in ("error", "torch_error", "limit")]
    failure = next((m["failure"] for m in found if m and m["failure"]), None)
    fed = failure is not None and o["isolated"] is not None and not o["isolated"]["failure"]  # what was wrong
    style, mark = ("unsure", UNSURE) if fed else ("wrong", _mark(not failure))
    what = escape(o["what"]) + (f'<br><span class="{style}">{escape(failure)}</span>' if failure else "")
    return [mark, f"<code>{o['operation']}</code>", what, *cells]


def _worst(report: dict[str, Any], check: str) -> str:
    found = sorted(report["measurements"].get(check, []), key=share, reverse=True)[:WORST]
    if not found:
        return ""
    rows = [
        (
            _mark(m["agrees"]),
            f"<code>{escape(m['name'])}</code>",
            m["kind"],
            *(number(m[key]) for key in ("error", "torch_error", "limit")),
            "-" if m["scale"] is None else f"{m['scale'] - 1:+.1e}",
            "-" if m["cosine"] is None else f"{1 - m['cosine']:.1e}",
            number(m["elementwise"]),
        )
        for m in found
    ]
    head = ("", "", "", "JAX", "PyTorch", "allowed", "scale - 1", "1 - cosine", "largest element's")
    return table(head, rows, 6) + '<p class="soft">Cosine and elementwise errors are shown, never judged.</p>'


def _trajectory(report: dict[str, Any]) -> str:
    found = report["trajectory"]
    if not found or not found["sigmas"]:
        return ""

    def series(name, style, key):
        points = [
            (error, f"sigma {sigma:.4g}: {name} {number(error)}")
            for sigma, error in zip(found["sigmas"], found[key], strict=False)
        ]
        return Series(name, style, points)

    axis = [(f"{len(found['sigmas']) - 1} Heun steps, from sigma {found['sigmas'][0]:g} to 0", len(found["error"]))]
    shown = [
        series("allowed", "limit", "limit"), series("PyTorch", "torch", "torch_error"), series("JAX", "jax", "error"),
    ]  # fmt: skip
    plot = log_plot(shown, axis, (), "trajectory")
    psnr = "equal to the last bit" if found["psnr"] is None else f"{found['psnr']:.1f} dB PSNR"
    samples = "".join(
        f'<figure><img src="{uri}" alt="{escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, uri in found["samples"].items()
    )
    where = f"<div class=samples>{samples}</div>" if samples else ""
    return f"<p>The final image: {psnr} against float64.</p>{where}<div class=scroll>{plot}</div>"


def _throughput(report: dict[str, Any]) -> str:
    shown = ("\n".join(map(escape, throughput_lines(entry))) for entry in report["throughput"])
    return "".join(f"<pre>{text}</pre>" for text in shown)


def _how(report: dict[str, Any]) -> str:
    parts = [
        facts("snapshot", report["snapshot"] | {"checkpoint": report["checkpoint"], "reference": report["reference"]}),
        facts("plan", report["plan"] | {"seconds": report["seconds"]["all"]}),
    ]
    if report["code"]:
        parts.append(facts("source of the snapshot's network", report["code"]))
    parts += [facts(f"{name}: versions and hardware", values) for name, values in report["environment"].items()]
    parts += [facts(f"{name}: switches and probes", values) for name, values in report["switches"].items()]
    parts += [facts("configuration", report["config"]), facts("tolerances", report["tolerance"])]
    return "".join(parts)


def facts(name: str, values: dict[str, Any]) -> str:
    """A table of names and values that opens when it is asked for."""
    rows = [(escape(str(key)), f"<code>{escape(_plain(value))}</code>") for key, value in values.items()]
    return f"<details><summary>{escape(name)}</summary>{table(('', ''), rows)}</details>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(v)}" for key, v in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
