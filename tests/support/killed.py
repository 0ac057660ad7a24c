"""Conversions and averages that are killed at random moments: the suite kills a few, and `make kills` many."""

import dataclasses
import shutil
from pathlib import Path
from unittest import mock

from jax_edm2.converter import averages
from jax_edm2.converter.convert import convert
from jax_edm2.converter.phema import PhemaRequest, reconstruct
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support import children
from tests.support.networks import network

CONFIG = {
    "img_resolution": 16, "img_channels": 3, "label_dim": 5, "model_channels": 64, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 64,
}  # fmt: skip
AVERAGED = {
    "img_resolution": 8, "img_channels": 2, "label_dim": 3, "model_channels": 8, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8,
}  # fmt: skip
TIMES, STDS = (65, 131, 262, 524), (0.05, 0.1)
WANTED = (0.04, 0.075, 0.15, 0.25)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def conversions(folder: Path, kills: int) -> tuple[dict[str, int], int, int]:
    """An output is replaced, and the process killed: how often it was then the old one and the new one, how often the
    process was killed in the midst, and how often it left something beside."""
    whole = {}
    for name, seed in (("old", 0), ("new", 1)):
        write_snapshot(folder / f"{name}.pkl", network(CONFIG, seed))
        with read_snapshot(folder / f"{name}.pkl") as snapshot:
            convert(snapshot, folder / "x.safetensors", overwrite=True)
        whole[(folder / "x.safetensors").read_bytes()] = name
    target, out = folder / "out" / "x.safetensors", folder / "out"
    out.mkdir()
    seen, midst, left = {"old": 0, "new": 0}, 0, 0
    arguments = str(folder / "new.pkl"), str(target)
    longest = 1.5 * sorted(children.duration(children.convert, arguments) for _ in range(5))[2]
    for i in range(kills):
        with read_snapshot(folder / "old.pkl") as snapshot:
            convert(snapshot, target, overwrite=True)
        assert names(out) == ["x.safetensors"]  # what the last one left is gone
        midst += children.kill_at_random(children.convert, arguments, longest, i)
        seen[whole[target.read_bytes()]] += 1
        left += len(names(out)) > 1
    return seen, midst, left


def write_snapshots(folder: Path) -> Path:
    """Snapshots of a small network at several times."""
    for i, kimg in enumerate(TIMES):
        for j, std in enumerate(STDS):
            write_snapshot(folder / f"run-{kimg:07d}-{std:.3f}.pkl", network(AVERAGED, seed=2 * i + j))
    return folder


def reconstructions(snapshots: Path, folder: Path, kills: int) -> int:
    """Outputs are old or new after every kill, and who goes on gets what nobody interrupted: how often one went on."""
    with mock.patch.object(averages, "PIECE", 999):
        request = PhemaRequest(snapshots, folder / "whole", WANTED)
        whole = {made.path.name: made.path.read_bytes() for made in reconstruct(request).made}
        out, resumed = folder / "out", 0
        arguments = str(snapshots), str(out), WANTED
        longest = 1.2 * sorted(children.duration(children.phema, arguments) for _ in range(3))[1]
        for i in range(kills):
            shutil.rmtree(out)
            children.kill_at_random(children.phema, arguments, longest, i)
            # Beside them there may be a hidden one, which was to be renamed: who goes on removes it.
            left = {path.name: path.read_bytes() for path in out.glob("[!.]*") if path.is_file()}
            assert left.items() <= whole.items()
            journals = list(out.glob(".phema-0000524-*.phema/journal"))
            resumed += bool(journals) and '"tensor"' in journals[0].read_text()
            if left and not journals:
                assert left == whole
                continue
            reconstruct(dataclasses.replace(request, outdir=out))
            assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    return resumed
