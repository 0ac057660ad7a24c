"""Pictures of a training: samples of its averages, and the loss by noise level."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_edm2.decoding import VAE, make_decoder
from jax_edm2.files import whole_or_nothing
from jax_edm2.generation import Generator
from jax_edm2.network import Precond
from jax_edm2.record import Record

from ..pictures import MODES, sheet_of
from ..sources import Fetching
from ..vae import find_vae
from .request import TrainError
from .tally import BINS, HIGHEST, LOWEST

SEED = 0  # of the first picture: the same in every grid, so that they can be compared


class Sampler:
    """Draws grids of one training's averages, with NVlabs' sampler, on this process's first device."""

    def __init__(self, net: Precond, record: Record, classes: int, count: int, vae: str | None, fetching: Fetching):
        """classes: that the data has. count: of pictures in a grid; there are none of latents without a `vae`.

        Raises: TrainError, ConverterError, OSError for a VAE that is not sound or does not fit.
        """
        latents = record.encoder is not None and record.encoder.kind == VAE
        drawable = vae is not None if latents else record.config.img_channels in MODES
        self.count = count if drawable else 0
        self._net, self._classes = dataclasses.replace(net, remat=False), classes
        self._generator: Generator | None = None
        if self.count:
            try:
                self._decoder = make_decoder(record.encoder, find_vae(record.encoder, vae, fetching) if vae else None)
            except ValueError as error:
                raise TrainError(f"{vae}: {error}") from None

    def draw(self, variables: Any, path: Path):
        """Write a grid of pictures, PNG: of every class in turn, with the same noise each time. Raises: OSError."""
        if self._generator is None:
            first = jax.local_devices()[:1]
            generator = Generator(self._net, variables, rng="jax", decoder=self._decoder, devices=first)
            self._generator = generator.with_variables(None)  # between two pictures training has the device's memory
        else:
            generator = self._generator.with_variables(variables)
        seeds = range(SEED, SEED + self.count)
        classes = [seed % self._classes for seed in seeds] if self._classes else None
        pictures: list[np.ndarray] = []
        for batch in generator(seeds, min(self.count, 64), classes):
            pictures += list(np.asarray(batch.pictures)[: len(batch.seeds)])
        with whole_or_nothing(path, overwrite=True) as temporary:
            sheet_of(pictures).save(temporary, "PNG")


def draw_losses(tally: np.ndarray, title: str, path: Path):
    """Write the mean loss by noise level, and how many images had that, as PNG. tally: float [2, BINS], of some.

    Needs matplotlib. Raises: OSError.
    """
    from matplotlib.figure import Figure

    edges = np.exp(np.linspace(LOWEST, HIGHEST, BINS + 1))
    middles, there = np.sqrt(edges[1:] * edges[:-1]), tally[1] > 0
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    seen = np.flatnonzero(there)
    axes.set_xlim(edges[max(seen[0] - 1, 0)], edges[min(seen[-1] + 2, BINS)])
    axes.plot(middles[there], tally[0][there] / tally[1][there], marker=".", color="tab:blue")
    axes.set(xscale="log", xlabel="noise level sigma", ylabel="mean loss", title=title)
    axes.grid(alpha=0.3)
    counts = axes.twinx()
    counts.stairs(tally[1], edges, fill=True, alpha=0.15, color="tab:gray")
    counts.set(ylabel="images", ylim=(0, 4 * max(float(tally[1].max()), 1.0)))
    with whole_or_nothing(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")
