"""Estimates of compiled programs, for people and for programs: lines, compile.json and compile.html.

compile.json: {"schema": "edm2-compile/1", "label": LABEL, "target": {text, chips, device, memory, bandwidth, flops,
source}, "network": {configuration, parameters, precision, batch}, "programs": [`Estimate.to_json`], "versions"}
"""

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_edm2 import __version__
from jax_edm2.strict_json import dumps

from ..compiling.estimate import Estimate, too_large
from .files import write_whole
from .html import facts, page, section, table
from .markup import escape

SCHEMA = "edm2-compile/1"
LABEL = "estimate, not a measurement"


def to_json(found: Sequence[Estimate], command: str) -> dict[str, Any]:
    job, target = found[0].job, found[0].target
    device = target.device
    return {
        "schema": SCHEMA,
        "label": LABEL,
        "target": {
            "text": target.text, "chips": target.chips, "device": device.name, "memory": device.memory,
            "bandwidth": device.bandwidth, "flops": dict(device.flops), "source": device.source,
        },
        "network": {"config": job.config.to_json(), "precision": job.precision, "batch": job.batch},
        "programs": [each.to_json() for each in found],
        "versions": versions(device.platform),
        "command": command,
    }  # fmt: skip


def versions(platform: str) -> dict[str, str]:
    names = ["jax", "jaxlib", *(["libtpu"] if platform == "tpu" else ["jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12"])]
    found = {"edm2-jax": __version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not known"
    return found


def terminal(found: Sequence[Estimate]) -> Iterator[str]:
    """Lines for a person."""
    job, target = found[0].job, found[0].target
    yield f"{target.text}: {target.device.name}, {job.precision}, batch {job.batch}: {LABEL}"
    yield ""
    for each in found:
        yield from _lines(each)
    failed = [each for each in found if each.error is not None]
    large = [line for each in found if (line := too_large(each))]
    yield ""
    if failed or large:
        for line in (*(f"the {each.program} does not compile" for each in failed), *large):
            yield f"BAD {line}"
    else:
        yield f"ok  all compile and fit ({LABEL})"


def _lines(each: Estimate) -> Iterator[str]:
    if each.error is not None:
        yield f"BAD {each.program:9} does not compile: {each.error}"
        return
    yield f"{'ok ' if each.fits else 'BAD'} {each.program:9} " + "; ".join(text for _, text in _figures(each))


def _figures(each: Estimate) -> Iterator[tuple[str, str]]:
    """(what, how much), in words."""
    memory, device = each.memory, each.target.device
    yield "memory", f"{each.bytes / 1e9:.2f} GB on a chip of {device.memory / 1e9:.0f}"
    yield "largest batch", f"about {each.largest_batch} images fit"
    parts = (f"{name.replace('_', ' ')} {memory[name] / 1e6:,.0f} MB" for name in memory if memory[name])
    yield "memory for", ", ".join(parts)
    if each.flop is not None:
        yield "products", f"{each.flop / 1e9:,.0f} GFLOP"
    if moved := each.moved:
        intensity = f", {each.flop / moved:,.0f} FLOP for a byte" if each.flop is not None else ""
        yield "moved", f"{moved / 1e9:,.1f} GB{intensity}"
    if each.roofline_seconds is not None:
        yield "roofline", f"{each.roofline_seconds * 1e3:,.2f} ms at least"
    if each.cycle_seconds is not None:
        share = f", {each.share_of_peak:.0%} of the peak" if each.share_of_peak is not None else ""
        yield "the compiler's cycles", f"{each.cycle_seconds * 1e3:,.2f} ms{share}"
    kernels = each.counts["kernels"]
    yield "kernels", f"{sum(kernels.values()):,} kernels"
    if each.counts["transposes"]:
        moved = each.counts["transposed_bytes"] / 1e6
        yield "transposes", f"{each.counts['transposes']:,} of them transposes of {moved:,.0f} MB"
    for name, size in each.counts["collectives"].items():
        yield name, f"{name} {size / 1e6:,.1f} MB"
    yield "compiled in", f"{each.seconds:.0f} s"


def html(record: dict[str, Any], found: Sequence[Estimate]) -> str:
    job, target = found[0].job, found[0].target
    bad = [each for each in found if each.error is not None or not each.fits]
    heading = f"{target.text}: {'not everything compiles and fits' if bad else 'all compile and fit'}"
    head = (
        f'<div class="verdict {"disagrees" if bad else "agrees"}"><h1>{escape(heading)}</h1>'
        f"<p>{escape(LABEL)}: the compiler's word and the datasheet's; nothing was run on {escape(target.device.name)}."
        f"</p><p>{escape(job.precision)}, batch {job.batch}, {escape(record['command'])}</p></div>"
    )
    sections = [head]
    for each in found:
        if each.error is not None:
            sections.append(section(f"The {each.program}", f"<p class='wrong'>{escape(each.error)}</p>"))
            continue
        body = table(("", LABEL), [(escape(name), escape(text)) for name, text in _figures(each)])
        body += table(("kernel", "how many"), _ranked(each.counts["kernels"]))
        total = sum(each.counts["cycles"].values())
        if total:
            body += table(("cycles of", "share"), _shares(each.counts["cycles"], total))
            body += table(("cycles in", "share"), _shares(each.counts["cycles_by_block"], total))
        sections.append(section(f"The {each.program}", body))
    about = {**record["target"], "flops": dumps(record["target"]["flops"])}
    sections.append(section("The device", facts("its published figures", about)))
    sections.append(section("Versions", facts("of what compiled", record["versions"])))
    return page(f"edm2-verify: {heading}", sections)


def _ranked(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(escape(name), f"{count:,}") for name, count in sorted(counts.items(), key=lambda item: -item[1])]


def _shares(counts: dict[str, int], total: int) -> list[tuple[str, str]]:
    return [(escape(name), f"{count / total:.1%}") for name, count in sorted(counts.items(), key=lambda item: -item[1])]


def write(record: dict[str, Any], found: Sequence[Estimate], folder: Path):
    """compile.json and compile.html."""
    write_whole(folder / "compile.json", dumps(record))
    write_whole(folder / "compile.html", html(record, found))
