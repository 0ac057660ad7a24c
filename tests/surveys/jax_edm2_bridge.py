"""`make nmboffi`: our bridge beside jax-edm2's own edm2_net.py, with the weights of the digits network.

    python -m tests.surveys.jax_edm2_bridge --jax-edm2 DIR    # a clone of github.com/nmboffi/jax-edm2; a minute

Largest relative differences of outputs and logvar, in float32 and bfloat16, with labels and without; of the U-Net
alone; of projected weights; of a network with positional features, as it is and after jax_edm2.save and load; and what
both frameworks' dropout keeps for the same key. That project's code is run as it is, with JAX's standard promotion.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jax_edm2
from jax_edm2.bridges import nmboffi
from jax_edm2.converter.convert import convert
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from tests.support.networks import relative_error

COUNT = 64
BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2}  # bfloat16: roundings differ


class Report:
    def __init__(self):
        self.failed = 0

    def __call__(self, name: str, ours, theirs, bound: float):
        error = relative_error(np.asarray(ours, np.float32), np.asarray(theirs, np.float32))
        good = np.shape(ours) == np.shape(theirs) and error <= bound
        self.failed += not good
        print(f"{name:58}{error:10.1e}{'' if good else f'   FAILS {np.shape(ours)}, {np.shape(theirs)}, {bound:g}'}")


def inputs(config):
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(keys[0], (COUNT, config.img_channels, config.img_resolution, config.img_resolution))
    labels = jax.nn.one_hot(jax.random.randint(keys[1], (COUNT,), 0, config.label_dim), config.label_dim)
    return jax.random.uniform(keys[2], (COUNT,), minval=-1.5, maxval=1.2), xs * config.sigma_data, labels


def run(model, variables, *arguments, **kwargs):
    return jax.jit(lambda variables, *arguments: model.apply(variables, *arguments, **kwargs))(variables, *arguments)


def compare(report, edm2_net, name, arguments, variables, example):
    """Both PrecondUNets with the same variables."""
    ts, xs, labels = example
    exact = run(jax_edm2.PrecondUNet(**arguments | {"use_bfloat16": False}), variables, *example)
    for precision, bound in BOUNDS.items():
        kwargs = arguments | {"use_bfloat16": precision == "bfloat16"}
        ours, theirs = jax_edm2.PrecondUNet(**kwargs), edm2_net.PrecondUNet(**kwargs)
        output, logvar = run(ours, variables, *example, calc_weight=True)
        wanted, first = run(theirs, variables, *example, calc_weight=True)
        report(f"{name}, {precision}: output", output, wanted, bound)
        if precision == "bfloat16":
            report(f"{name}, {precision}: ours beside float32", output, exact, bound)
            report(f"{name}, {precision}: jax-edm2's own beside float32", wanted, exact, bound)
        report(f"{name}, {precision}: logvar, which is the first's there", logvar[0], first, BOUNDS["float32"])
        every = run(theirs, variables, ts, method="calc_weight")
        report(f"{name}, {precision}: calc_weight", run(ours, variables, ts, method="calc_weight"), every, 1e-5)
        zeros = run(theirs, variables, ts, xs, jnp.zeros_like(labels))
        report(f"{name}, {precision}: None, and zeros there", run(ours, variables, ts, xs), zeros, bound)
    try:
        edm2_net.PrecondUNet(**arguments).apply(variables, ts, xs)
    except (AttributeError, TypeError) as error:
        print(f"{name}: without labels, jax-edm2's own raises {type(error).__name__}")
    else:
        raise SystemExit("jax-edm2's own takes labels of None: say so where its differences are listed")


def unet_alone(report, edm2_net, arguments, variables, example):
    ts, xs, labels = example
    kwargs = {name: arguments[name] for name in ("img_resolution", "img_channels", "label_dim")}
    kwargs |= arguments["unet_kwargs"]
    inner = {kind: tree["unet"] for kind, tree in variables.items()}
    ours, theirs = (run(kind(**kwargs), inner, xs, ts, labels) for kind in (jax_edm2.EDM2UNet, edm2_net.EDM2UNet))
    report("EDM2UNet, float32", ours, theirs, BOUNDS["float32"])


def projections(report, edm2_net, variables):
    for name, tree in (
        ("project_to_sphere", variables),
        ("pmap_project_to_sphere", jax.tree.map(lambda leaf: leaf[None], variables)),
    ):
        ours, theirs = (jax.tree.leaves(getattr(module, name)(tree)) for module in (jax_edm2, edm2_net))
        worst = max(range(len(ours)), key=lambda i: relative_error(ours[i], theirs[i]))
        report(f"{name}, the worst leaf", ours[worst], theirs[worst], 1e-6)


def dropout(edm2_net, arguments, variables, example):
    """How often both keep or drop the same element, before and after what is known to differ is put aside."""
    shape, rate = (COUNT, 8, 4, 4), 0.1

    class Named(nn.Module):
        name_of_layer: str

        @nn.compact
        def __call__(self, x):
            return nn.Dropout(rate, deterministic=False, name=self.name_of_layer)(x)

    def kept(name, *, last):
        ones = jnp.ones((shape[0], *shape[2:], shape[1]) if last else shape)
        mask = Named(name).apply({}, ones, rngs={"dropout": jax.random.key(0)}) > 0
        return mask.transpose(0, 3, 1, 2) if last else mask

    theirs = kept("dropout_layer", last=False)
    chance = (1 - rate) ** 2 + rate**2
    print(f"dropout: elements on which both agree, where chance gives {chance:.3f}:")
    for what, ours in (
        ("as they are", kept("drop", last=True)),
        ("the same name of the layer", kept("dropout_layer", last=True)),
        ("the same order of axes", kept("drop", last=False)),
        ("the same name and order", kept("dropout_layer", last=False)),
    ):
        print(f"    {what:30}{float((ours == theirs).mean()):.3f}")
    outputs = [
        run(kind(**arguments), variables, *example, train=True, rngs={"dropout": jax.random.key(0)})
        for kind in (jax_edm2.PrecondUNet, edm2_net.PrecondUNet)
    ]
    print(f"    outputs of the networks then differ by {relative_error(*map(np.asarray, outputs)):.2g}")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.surveys.jax_edm2_bridge", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--jax-edm2", required=True, metavar="DIR", help="a clone of github.com/nmboffi/jax-edm2")
    args = parser.parse_args()
    sys.path.insert(0, args.jax_edm2)
    import edm2_net

    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        with read_snapshot(ROOT / "golden" / "digits.pkl") as snapshot:
            convert(snapshot, path)
        net, variables = jax_edm2.load(path, dtype=jnp.float32)
        arguments, example = nmboffi.arguments(net), inputs(net.config)
        print(f"{COUNT} inputs; relative differences")
        compare(report, edm2_net, "digits", arguments, variables, example)
        unet_alone(report, edm2_net, arguments, variables, example)
        projections(report, edm2_net, variables)

        positional = arguments | {"unet_kwargs": arguments["unet_kwargs"] | {"use_fourier": False}}
        params = {"params": variables["params"]}
        compare(report, edm2_net, "positional", positional, params, example)
        saved = Path(folder) / "positional.safetensors"
        jax_edm2.save(saved, *nmboffi.to_precond(jax_edm2.PrecondUNet(**positional), params))
        net, loaded = jax_edm2.load(saved)
        wanted = run(edm2_net.PrecondUNet(**positional), params, *example)
        for name, kind in (("ours", jax_edm2.PrecondUNet), ("jax-edm2's own", edm2_net.PrecondUNet)):
            found = run(kind(**nmboffi.arguments(net)), loaded, *example)
            report(f"positional, saved and loaded as constants, {name}", found, wanted, BOUNDS["float32"])
    dropout(edm2_net, arguments, variables, example)
    raise SystemExit(bool(report.failed))


if __name__ == "__main__":
    main()
