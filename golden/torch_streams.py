"""Records what torch's generators draw for an image: golden/torch_streams.json, which needs no torch to be checked.

    python -m golden.torch_streams                # of this machine: the CPU, and CUDA where there is a GPU
    python -m golden.torch_streams --check        # how far jax_edm2.torch_random is from the record

For every seed: noise [4, 64, 64], a class of 1,000, and noise of the same shape twice more, in the order of NVlabs'
generate_images.py. Of every noise the record has the first and last values, the sum and the sum of magnitudes.
A device that is not here keeps what was recorded of it before.
"""

import argparse
import json
import sys
from pathlib import Path

from jax_edm2.converter.verify.golden.torch_streams import CHURN, RECORD, STREAMS, bound, distance, summary

SEEDS = (0, 1, 2, 12345, 2**31, 2**32 - 1)
SHAPE = (4, 64, 64)


def draw(device):
    """What torch draws on a device, by seed."""
    import torch

    record = {}
    for seed in SEEDS:
        generator = torch.Generator(device).manual_seed(seed)
        noise = torch.randn(SHAPE, generator=generator, device=device)
        label = torch.randint(1000, size=[], generator=generator, device=device)
        churn = [torch.randn(SHAPE, generator=generator, device=device) for _ in range(CHURN)]
        noises = [summary(value.cpu().numpy()) for value in (noise, *churn)]
        record[str(seed)] = {"label": label.item(), "noises": noises}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"torch": torch.__version__, "device": name, "shape": SHAPE, "seeds": record}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.torch_streams", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--output", type=Path, default=RECORD, help="default: golden/torch_streams.json")
    args = parser.parse_args(argv)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if not args.check:
        import torch

        record |= {device: draw(device) for device in STREAMS if device == "cpu" or torch.cuda.is_available()}
        args.output.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    good = True
    for device, found in record.items():
        worst, wrong = distance(device, found)
        good &= worst < bound(device) and not wrong
        print(f"{device} ({found['device']}, torch {found['torch']}): {worst:.1e} at most, {wrong} labels differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
