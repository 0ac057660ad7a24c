"""Trainings of a tiny network, short enough for tests."""

from pathlib import Path

from jax_edm2.converter.train.request import TrainRequest

BATCH = 8
NETWORK = {"channel_mult": [1, 2], "num_blocks": 0, "attn_resolutions": [4], "channels_per_head": 8,
           "logvar_channels": 16}  # fmt: skip


def request(data: Path, outdir: Path, images: int, **more) -> TrainRequest:
    """Of so many images, with dropout, a rate that rises and falls, and neither snapshots nor pictures."""
    fields = {
        "network": NETWORK, "channels": 8, "batch": BATCH, "duration": images, "dropout": 0.1, "rampup": 4 * BATCH,
        "decay": 8, "status": 0, "snapshot": 0, "checkpoint": 0, "samples": 0,
    }  # fmt: skip
    return TrainRequest(outdir, data, **{**fields, **more})
