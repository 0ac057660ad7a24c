"""Training in JAX beside PyTorch, from one state, with the same batches and draws: how far apart they come.

    python -m tests.surveys.training                  # beside torch_ref
    python -m tests.surveys.training --nvlabs DIR     # and beside NVlabs' training_loop, of a clone, begun and resumed

The control is PyTorch beside PyTorch whose noise is times 1 + 1e-7, and times 1 - 1e-7 and 1 + 2e-7: Adam's first steps
are signs of gradients, and those that are nearly 0 fall out this way or that. What is within four times the largest, or
nearer to the same training in float64 than PyTorch itself, is the same training. A distance is the largest of any
parameter, ||x - y|| / ||y||.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

import jax_edm2
from golden.digits import CONFIG, digits
from jax_edm2.converter.names import jax_path, torch_name
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.train.states import read_training
from jax_edm2.torch_ref.training import PowerFunctionEMA, learning_rate
from jax_edm2.training import Draws, Recipe, begin, make_optimizer, resume, train_step
from tests.support.networks import network

NETWORK = {**CONFIG, "dropout": 0.0}
KEPT = (1, 20, 200)
CONTROLS, TIMES = (1 + 1e-7, 1 - 1e-7, 1 + 2e-7), 4.0
MIDDLE, AFTER = 32, 50  # steps before and after the .pt that is resumed
RECIPE = Recipe(batch_size=32, decay_batches=100, rampup_images=0, P_mean=-0.8, P_std=1.6)
States = dict[int, dict[str, np.ndarray]]  # by step and part/NAME


@dataclass(frozen=True)
class Recorded:
    """What a training took of chance and data: a leading axis of steps; images are what the network is given."""

    images: np.ndarray
    labels: np.ndarray
    levels: np.ndarray
    noise: np.ndarray

    def __len__(self):
        return len(self.images)


def of_digits(steps: int) -> Recorded:
    rng = np.random.default_rng(0)
    images, _, labels, _ = digits()
    chosen = rng.integers(len(images), size=(steps, RECIPE.batch_size))
    normal = (rng.standard_normal((steps, RECIPE.batch_size, *shape), np.float32) for shape in ((), images.shape[1:]))
    return Recorded(
        images[chosen].astype(np.float32) / 127.5 - 1, np.eye(10, dtype=np.float32)[labels[chosen]], *normal
    )


def in_torch(data: Recorded, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> States:
    """torch_ref in NVlabs' order."""
    net = network(NETWORK).to(dtype).train().requires_grad_(True)
    adam, ema = torch.optim.Adam(net.parameters(), betas=RECIPE.betas, eps=RECIPE.eps), PowerFunctionEMA(net)
    kept: States = {}
    for step in range(len(data)):
        images, labels, levels, noise = (
            torch.as_tensor(x[step], dtype=dtype) for x in (data.images, data.labels, data.levels, data.noise)
        )
        sigma = (RECIPE.P_mean + RECIPE.P_std * levels).exp().reshape(-1, 1, 1, 1)
        denoised, logvar = net(images + sigma * noise * scale, sigma, labels, return_logvar=True, dtype=dtype)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        loss = weight / logvar.exp() * (denoised - images) ** 2 + logvar
        adam.zero_grad(set_to_none=True)
        (loss.sum() / RECIPE.batch_size).backward()
        seen = step * RECIPE.batch_size
        adam.param_groups[0]["lr"] = learning_rate(
            seen, RECIPE.batch_size, RECIPE.learning_rate, RECIPE.decay_batches, RECIPE.rampup_images
        )
        adam.step()
        ema.update(seen + RECIPE.batch_size, RECIPE.batch_size)
        if step + 1 in KEPT:
            parts = {"net": net} | {f"ema-{std:.3f}": each for std, each in zip(ema.stds, ema.nets, strict=True)}
            kept[step + 1] = {
                f"{part}/{name}": p.detach().numpy().copy()
                for part, each in parts.items()
                for name, p in each.named_parameters()
            }
    return kept


def in_jax(data: Recorded, weights: dict[str, np.ndarray] | None = None, state: Path | None = None) -> States:
    """From weights, or from a training state whose steps go on."""
    net = jax_edm2.Precond(jax_edm2.EDM2Config(**NETWORK))
    kept: States = {}
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_optimizer(RECIPE)
        if state is not None:
            now = resume(read_training(state, lambda _tree: None), optimizer)
        else:
            leaves = {jax_path(name): jnp.asarray(value) for name, value in (weights or {}).items()}
            now = begin(unflatten_dict(leaves, sep="/"), optimizer, RECIPE)
        for step in range(len(data)):
            draws = Draws(jnp.asarray(data.levels[step].reshape(-1)), jnp.asarray(data.noise[step]))
            batch = jnp.asarray(data.images[step]), jnp.asarray(data.labels[step])
            now, _ = train_step(net, optimizer, RECIPE, now, *batch, draws)
            if step + 1 in (*KEPT, AFTER):
                parts = {"net": now.variables} | {f"ema-{std:.3f}": tree for std, tree in now.averages.items()}
                kept[step + 1] = {
                    f"{part}/{torch_name(f'params/{path}')}": np.asarray(leaf)
                    for part, tree in parts.items()
                    for path, leaf in flatten_dict(tree["params"], sep="/").items()
                }
    return kept


def nvlabs(
    clone: Path, outdir: Path, steps: int, keep: tuple[int, ...], scale: float = 1.0, checkpoint=None, weights=None
):
    """Run NVlabs' loop in `outdir`, from the checkpoint there if it has one: (what it kept, what it drew)."""
    outdir.mkdir(exist_ok=True)
    data = outdir.parent / "digits.zip"
    kwargs = {name: NETWORK[name] for name in NETWORK if name not in ("img_resolution", "img_channels", "label_dim")}
    loop = {
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": str(data), "use_labels": True},
        "encoder_kwargs": {"class_name": "training.encoders.StandardRGBEncoder"},
        "network_kwargs": {"class_name": "training.networks_edm2.Precond", **kwargs, "use_fp16": False},
        "loss_kwargs": {
            "class_name": "training.training_loop.EDM2Loss", "P_mean": RECIPE.P_mean, "P_std": RECIPE.P_std,
        },
        "lr_kwargs": {
            "func_name": "training.training_loop.learning_rate_schedule",
            "ref_lr": RECIPE.learning_rate, "ref_batches": RECIPE.decay_batches, "rampup_Mimg": 0,
        },
        "batch_size": RECIPE.batch_size, "total_nimg": steps * RECIPE.batch_size, "checkpoint_nimg": checkpoint,
    }  # fmt: skip
    job = {"outdir": str(outdir), "keep": keep, "noise": scale, "loop": loop, "weights": weights and str(weights)}
    script = ROOT / "tests" / "surveys" / "nvlabs_training.py"
    done = subprocess.run([sys.executable, script, clone], input=json.dumps(job), text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr)
    (outdir / "rendezvous").unlink(missing_ok=True)
    found = {step: dict(np.load(outdir / f"{step}.npz")) for step in keep}
    return found, Recorded(**np.load(outdir / "draws.npz"))


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray], part: str) -> float:
    return max(
        float(np.linalg.norm(one[key].astype(np.float64) - value) / np.linalg.norm(value.astype(np.float64)))
        for key, value in other.items()
        if key.startswith(f"{part}/") and key in one and not key.endswith(("freqs", "phases"))
    )


def table(title: str, jax_: States, torch_: States, controls: list[States], truth: States | None = None) -> bool:
    """Print it; whether all is the same training."""
    good = True
    for step, theirs in torch_.items():
        for part in sorted({key.split("/")[0] for key in theirs}, reverse=True):
            found, noise = apart(jax_[step], theirs, part), [apart(each[step], theirs, part) for each in controls]
            exact = [] if truth is None else [apart(x[step], truth[step], part) for x in (jax_, torch_)]
            good &= found <= TIMES * max(noise) or (truth is not None and exact[0] <= exact[1])
            cells = [title, str(step), part, f"{found:.1e}", f"{noise[0]:.1e}", f"{max(noise):.1e}"]
            cells += [f"{found / max(noise):.2f}", *(f"{x:.1e}" for x in exact or ())] + [""] * (2 - len(exact))
            print(f"| {' | '.join(cells)} |", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.training", description=__doc__.splitlines()[0])
    parser.add_argument("--nvlabs", type=Path, help="a clone of NVlabs/edm2, whose own loop is run, on the CPU")
    args = parser.parse_args()
    head = "beside | steps | part | JAX from PyTorch | control | largest of three | ratio"
    print(f"| {head} | JAX from float64 | PyTorch from float64 |")
    print("|---|---|---|---|---|---|---|---|---|")
    data = of_digits(max(KEPT))
    weights = {name: value.numpy() for name, value in network(NETWORK).state_dict().items()}
    good = table(
        "torch_ref", in_jax(data, weights), in_torch(data), [in_torch(data, scale=scale) for scale in CONTROLS],
        in_torch(data, torch.float64),
    )  # fmt: skip
    if args.nvlabs is not None:
        with tempfile.TemporaryDirectory() as folder:
            good &= beside_nvlabs(args.nvlabs.absolute(), Path(folder), weights)
    print(f"\n{'all of it is' if good else 'NOT all of it is'} the same training")
    return 0 if good else 1


def beside_nvlabs(clone: Path, folder: Path, weights: dict[str, np.ndarray]) -> bool:
    from golden.digits import write_data

    write_data(folder / "digits.zip")
    save_file(weights, folder / "weights.safetensors")
    (theirs, drawn), *others = (
        nvlabs(clone, folder / f"begun{scale}", max(KEPT), KEPT, scale, weights=folder / "weights.safetensors")
        for scale in (1.0, *CONTROLS)
    )
    good = table(
        "NVlabs' training_loop",
        in_jax(drawn, weights),
        theirs,
        [kept for kept, _ in others],
        in_torch(drawn, torch.float64),
    )
    # A .pt of its own, in the middle
    nvlabs(clone, folder / "resumed", MIDDLE, (), checkpoint=MIDDLE * RECIPE.batch_size)
    (state,) = (folder / "resumed").glob("training-state-*.pt")
    found = []
    for scale in (1.0, *CONTROLS):
        outdir = folder / f"resumed{scale}"
        outdir.mkdir()
        os.link(state, outdir / state.name)
        found.append(nvlabs(clone, outdir, MIDDLE + AFTER, (AFTER,), scale))
    (again, drawn), *others = found
    return good & table("its .pt, gone on with", in_jax(drawn, state=state), again, [kept for kept, _ in others])


if __name__ == "__main__":
    sys.exit(main())
