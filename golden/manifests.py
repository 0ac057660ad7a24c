"""The complete tree of every size that is published: golden/manifests/NAME.json.

    python -m golden.manifests            # write them
    python -m golden.manifests --check    # print how they differ from what the network is, and fail if they do

Generated from the Flax network by shape evaluation: no weights are made. `tensors` has a line for each, in the order of
their paths: shape, dtype as NVIDIA stores it, bytes. `parameters` are those that are trained, without the Fourier
features. `gflops` is what the papers count (`converter.flops.paper_flops`), `gmacs` the multiply-accumulates in it.
"""

import argparse
import difflib
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jax_edm2.converter import presets
from jax_edm2.converter.flops import multiply_accumulates, paper_flops
from jax_edm2.network import Precond

FOLDER = Path(__file__).with_name("manifests")
NAMES = [f"edm2-{data}-{size}{suffix}" for data, suffix in (("img512", ""), ("img512", "-uncond"), ("img64", ""))
         for size in presets.MODEL_CHANNELS]  # fmt: skip


def manifest(name):
    """A manifest as JSON text, one tensor per line."""
    config = presets.config(f"{name}-0000000-0.100")
    image = jnp.zeros((1, config.img_channels, config.img_resolution, config.img_resolution))
    labels = jnp.zeros((1, config.label_dim))
    keys = {"params": jax.random.key(0), "constants": jax.random.key(1)}
    tree = flatten_dict(jax.eval_shape(Precond(config).init, keys, image, jnp.ones(1), labels), sep="/")
    tensors = {
        path: {"shape": list(leaf.shape), "dtype": "float16", "bytes": 2 * math.prod(leaf.shape)}
        for path, leaf in sorted(tree.items())
    }
    trained = [tensor for path, tensor in tensors.items() if path.startswith("params/")]
    head = {
        "name": name,
        "parameters": sum(tensor["bytes"] // 2 for tensor in trained),
        "trained_tensors": len(trained),
        "bytes": sum(tensor["bytes"] for tensor in tensors.values()),
        "gmacs": round(multiply_accumulates(config) / 1e9, 3),
        "gflops": round(paper_flops(config) / 1e9, 3),
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines.append(
        ' "tensors": {\n' + ",\n".join(f"  {json.dumps(p)}: {json.dumps(t)}" for p, t in tensors.items()) + "\n }"
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def differences():
    """How the manifests that are there differ from what they should be, as lines of a diff."""
    for name in NAMES:
        path = FOLDER / f"{name}.json"
        found = path.read_text().splitlines() if path.exists() else []
        yield from difflib.unified_diff(found, manifest(name).splitlines(), str(path), "the network", lineterm="", n=0)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.manifests", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything differs")
    args = parser.parse_args(argv)
    lines = list(differences())
    for line in lines:
        print(line)
    if not args.check:
        FOLDER.mkdir(exist_ok=True)
        for name in NAMES:
            (FOLDER / f"{name}.json").write_text(manifest(name))
    return 1 if lines and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
