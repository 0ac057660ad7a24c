"""The picture of a sweep: a metric against the averages' length, with a line for each guidance weight."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_edm2.files import whole_or_nothing

from .request import MetricsError

NAMES = {"fid": "FID", "fd_dinov2": "FD-DINOv2"}


def plot(rows: Sequence[dict[str, Any]], metrics: Sequence[str], path: Path):
    """rows: of `std`, `guidance`, and of each metric a `value`; of several seeds, the least is drawn, and all are dots.

    Raises: MetricsError without matplotlib; OSError.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MetricsError("a plot needs matplotlib: pip install 'edm2-jax[training]'") from None
    figure = Figure(figsize=(6 * len(metrics), 4.5), dpi=120, layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for weight in sorted({row["guidance"] for row in rows}):
            ours = [row for row in rows if row["guidance"] == weight]
            stds = sorted({row["std"] for row in ours})
            least = [min(row[metric]["value"] for row in ours if row["std"] == std) for std in stds]
            best = min(range(len(stds)), key=least.__getitem__)
            name = f"guidance {weight:g}: {least[best]:.4g} at {stds[best]:.3f}"
            (line,) = axes.plot(stds, least, marker="o", markersize=4, label=name)
            axes.plot([row["std"] for row in ours], [row[metric]["value"] for row in ours], ".", color=line.get_color())
            axes.plot(stds[best], least[best], "*", markersize=14, color=line.get_color())
        axes.set(xlabel="relative standard deviation of the EMA profile", ylabel=NAMES.get(metric, metric))
        axes.grid(alpha=0.3)
        axes.legend()
    with whole_or_nothing(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")
