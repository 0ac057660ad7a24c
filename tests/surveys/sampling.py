"""`make sampling`: what PyTorch and JAX draw from the digits network, over many seeds and every option.

Prints how far pictures are apart, in the network's units (-1 to 1) and in levels of 8-bit pictures, and how many
digits a classifier recognises, with and without guidance by an earlier snapshot of the same training.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import jax_edm2
from jax_edm2.converter.convert import convert
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.decoding import decode_pixels
from jax_edm2.generation import Draw
from jax_edm2.golden.digits import DigitClassifier, load_network
from jax_edm2.settings import Settings
from jax_edm2.torch_ref.encoders import StandardRGBEncoder
from tests.support.samples import OPTIONS, with_jax, with_torch

GOLDEN = ROOT / "golden"
BOUND, LEVELS, SHARE = 1e-4, 1, 1e-3  # of pixels; of 8-bit pictures; of 8-bit pixels that differ at all
GUIDANCE = (1.0, 1.5, 2.0)


def networks():
    """((PyTorch network, PyTorch guide), ((net, variables), (net, variables)) in JAX)."""
    paths = [GOLDEN / "digits.pkl", GOLDEN / "digits-guide.pkl"]
    with tempfile.TemporaryDirectory() as folder:
        ours = []
        for path in paths:
            target = Path(folder) / f"{path.stem}.safetensors"
            with read_snapshot(path) as snapshot:
                convert(snapshot, target)
            ours.append(jax_edm2.load(target))
    return [load_network(path) for path in paths], ours


def to_uint8(ours, theirs):
    import torch

    return np.asarray(decode_pixels((), ours)), StandardRGBEncoder().decode(torch.from_numpy(theirs)).numpy()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=256, help="default: 256")
    parser.add_argument("--samples", type=int, default=1000, help="for the classifier; default: 1000")
    args = parser.parse_args(argv)
    (net, guide), (network, guiding) = networks()
    good = True
    print(f"{'option':18}  {'largest difference':>18}  {'8-bit levels':>12}  {'pixels that differ':>18}")
    for name, settings in OPTIONS.items():
        draw = Draw.of(network[0].config, range(args.seeds), rng="torch-cpu", churn_draws=settings.churn_draws)
        ours, theirs = with_jax(network, guiding, draw, settings), with_torch(net, guide, draw, settings)
        difference = np.abs(ours - theirs).max()
        levels = np.abs(np.subtract(*to_uint8(ours, theirs), dtype=np.int16))
        good &= bool(difference < BOUND and levels.max() <= LEVELS and (levels > 0).mean() < SHARE)
        print(f"{name:18}  {difference:18.1e}  {levels.max():12}  {(levels > 0).mean():18.3%}", flush=True)
    classifier = DigitClassifier()
    print(f"\nrecognised of {args.samples} samples  PyTorch     JAX")
    for weight in GUIDANCE:
        draw = Draw.of(network[0].config, range(args.samples), rng="torch-cpu")
        settings = Settings(guidance=weight)
        pictures = to_uint8(with_jax(network, guiding, draw, settings), with_torch(net, guide, draw, settings))
        jax_share, torch_share = (classifier.accuracy(images, draw.classes) for images in pictures)
        good &= abs(jax_share - torch_share) <= 0.01
        print(f"guidance {weight:<17g}  {torch_share:7.1%} {jax_share:7.1%}", flush=True)
    print("PyTorch and JAX draw the same." if good else "PyTorch and JAX DIFFER.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
