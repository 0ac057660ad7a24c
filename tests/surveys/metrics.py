"""`make metrics`: the metrics of JAX beside PyTorch's and NVlabs' own, with detectors of random weights at full size.

    python -m tests.surveys.metrics                         # features, speed, memory, what the metric detects
    python -m tests.surveys.metrics --only nvlabs --nvlabs DIR            # NVlabs/edm2, on the CPU

features  against float64, in float32, with the published shapes
speed     images a second of both detectors beside torch's, by turns
memory    a process's peak with 1,000 and with 20,000 images
moments   10,001 images in batches of 64 on 1, 2 and 8 simulated devices, in 2 processes, and killed on the way
detects   FID of PyTorch's and of JAX's samples of the digits, with equal seeds, and of a damaged network's
nvlabs    calculate_metrics.py's values beside ours, and statistics files read by either
"""

import argparse
import contextlib
import functools
import itertools
import os
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

import jax_edm2
from jax_edm2.converter.convert import convert
from jax_edm2.converter.detectors import Found
from jax_edm2.converter.drawing_request import DrawRequest
from jax_edm2.converter.feature_statistics import read_statistics
from jax_edm2.converter.metrics import measuring
from jax_edm2.converter.metrics.request import CalcRequest, Detection, GenRequest, RefRequest
from jax_edm2.converter.metrics.run import calc, gen, reference
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.evaluation import Detector, DINOv2, frechet_distance
from jax_edm2.generation import Draw
from jax_edm2.golden.digits import digits, load_network, write_data
from jax_edm2.settings import Settings
from jax_edm2.torch_ref.encoders import StandardRGBEncoder
from tests.support import children
from tests.support.datasets import write_dataset
from tests.support.detectors import (
    TINY,
    tiny_detector,
    torch_inception,
    torch_inception_features,
    torch_vit,
    vit_tensors,
)
from tests.support.samples import with_torch

PARSER = argparse.ArgumentParser(prog="python -m tests.surveys.metrics", description=__doc__.splitlines()[0])
PARTS = ("features", "speed", "memory", "moments", "detects", "nvlabs")
PARSER.add_argument("--only", nargs="+", choices=PARTS, default=PARTS[:-1])
PARSER.add_argument("--nvlabs", type=Path, metavar="DIR", help="a clone of NVlabs/edm2")
PARSER.add_argument("--images", type=int, default=256, help="of nvlabs and detects, default: 256")
PARSER.add_argument("--no-vit", action="store_true", help="Inception alone: ViT-L takes 5 GB and a second an image")


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth ones in colour, of other frequencies each: uint8 [count, 3, size, size]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(-4, 4, (count, 3, 2, 3))
    phase = rng.uniform(0, 2 * np.pi, (count, 3, 3))
    angle = waves[:, :, 0, :, None, None] * x + waves[:, :, 1, :, None, None] * y
    value = np.sin(2 * np.pi * angle + phase[..., None, None]).sum(axis=2)
    return np.clip(127.5 + 42 * value + rng.normal(0, 8, value.shape), 0, 255).astype(np.uint8)


def relative(found, wanted) -> float:
    return float(np.linalg.norm(np.asarray(found) - wanted) / np.linalg.norm(wanted))


def inception() -> tuple[torch.nn.Module, Detector]:
    network = torch_inception()
    return network, Detector.of("fid", {name: value.numpy() for name, value in network.state_dict().items()})


def features(args, _folder: Path) -> bool:
    images = pictures(4, 512)
    network, detector = inception()
    found = jax.jit(detector.features)(detector.params, images)
    errors = {"Inception": relative(found, torch_inception_features(network, images))}
    if not args.no_vit:
        vit = DINOv2()
        tensors = vit_tensors(vit)
        detector = Detector.of("fd_dinov2", tensors)
        found = np.asarray(jax.jit(detector.features)(detector.params, images[:1]))
        del detector
        errors["DINOv2 ViT-L/14"] = relative(found, torch_vit(vit, tensors)(images[:1]))
    for name, error in errors.items():
        print(f"features of {name}: {error:.1e} from float64 (limit 1e-5)")
    return max(errors.values()) <= 1e-5


def speed(args, _folder: Path) -> bool:
    """The best of several turns each."""
    good = True
    network, detector = inception()
    todo = [("Inception", detector, lambda x: torch_inception_features(network, x, torch.float32), 64, 5)]
    if not args.no_vit:
        tensors = vit_tensors(DINOv2())
        run = torch_vit(DINOv2(), tensors, torch.float32)
        todo.append(("DINOv2 ViT-L/14", Detector.of("fd_dinov2", tensors), run, 16, 3))
        del tensors
    for name, ours, theirs, batch, rounds in todo:
        images, params, compiled = pictures(batch, 64), jax.device_put(ours.params), jax.jit(ours.features)
        turns = (functools.partial(compiled, params, images), functools.partial(theirs, images))
        best = [float("inf")] * 2
        for turn in range(rounds + 1):
            for which, run in enumerate(turns):
                began = time.perf_counter()
                jax.block_until_ready(run())
                if turn:
                    best[which] = min(best[which], time.perf_counter() - began)
        rates = [batch / seconds for seconds in best]
        print(f"speed of {name}: {rates[0]:.2f} images/s, torch {rates[1]:.2f}: {rates[0] / rates[1]:.2f} times (>= 1)")
        good &= rates[0] >= rates[1]
    return good


def memory(_args, folder: Path) -> bool:
    peaks = []
    for count in (1000, 20_000):
        images = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
        data = write_dataset(folder / f"{count}.zip", images)
        path = folder / "peak"
        process = children.start(children.peak_of_reference, str(data), str(folder / f"{count}.pkl"), str(path))
        process.join()
        peaks.append(float(path.read_text()))
    print(f"memory: {peaks[0]:.0f} MB above the imports with 1,000 images, {peaks[1]:.0f} with 20,000")
    return peaks[1] <= peaks[0] + 20


def moments(_args, folder: Path) -> bool:
    images = np.random.default_rng(1).integers(0, 256, (10_001, 3, 8, 8), np.uint8)
    data = str(write_dataset(folder / "moments.zip", images))
    began = time.perf_counter()
    one = folder / "one.pkl"
    children.start(children.reference, data, str(one), str(folder / "p1"), 1, None, 64).join()
    seconds, worst = time.perf_counter() - began, 0.0

    def compare(name: str, path: Path, running: list):
        nonlocal worst
        for process in running:
            process.join()
        a, b = (read_statistics(each)["fd_dinov2"] for each in (one, path))
        error = max(relative(b.mean, a.mean), relative(b.covariance, a.covariance))
        worst = max(worst, error if a.count == b.count == len(images) else 1.0)
        print(f"moments of {a.count:,} images, {name}: {error:.1e} from one device's (limit 1e-12)")

    for devices in (2, 8):
        path = folder / f"{devices}.pkl"
        compare(
            f"{devices} devices",
            path,
            [children.start(children.reference, data, str(path), str(folder / f"p{devices}"), devices, None, 64)],
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    path = folder / "two.pkl"
    compare("2 processes", path, [
        children.start(children.reference, data, str(path), str(folder / "p-two"), 1, (where, 2, i), 64)
        for i in range(2)
    ])  # fmt: skip
    path, kills = folder / "killed.pkl", 0
    arguments = (data, str(path), str(folder / "p-killed"), 1, None, 64)
    for seed in range(20):
        kills += children.kill_at_random(children.reference, arguments, seconds, 0.8 * random.Random(seed).random())
        if path.exists():
            break
    compare(f"killed {kills} times", path, [children.start(children.reference, *arguments)])
    return worst <= 1e-12


@contextlib.contextmanager
def random_detectors():
    """In place of the published ones: Inception of full size, and a tiny transformer."""
    _, detector = inception()

    def find(metric, given, fetching):
        return Found(detector, "random", "0" * 64) if metric == "fid" else tiny_detector(metric, given, fetching)

    with mock.patch.object(measuring, "find_detector", find):
        yield


WATCH = measuring.Watch(warn=lambda line: None)  # that there are fewer images than features is known
FID = Detection(metrics=("fid",), batch=32)


def detects(args, folder: Path) -> bool:
    """Samples of the digits network beside the digits themselves."""
    write_data(folder / "digits.zip")
    snapshot = ROOT / "golden" / "digits.pkl"
    with read_snapshot(snapshot) as opened:
        convert(opened, folder / "sound.safetensors")
    net, variables = jax_edm2.load(folder / "sound.safetensors")
    flat = flatten_dict(variables)
    name = max((path for path in flat if "dec" in "".join(path)), key=lambda path: flat[path].size)
    flat[name] = -flat[name]
    damaged = folder / "damaged.safetensors"
    jax_edm2.save(damaged, net, unflatten_dict(flat))
    draw = Draw.of(net.config, range(args.images), rng="torch-cpu")
    drawn = with_torch(load_network(snapshot), None, draw, Settings())
    images = StandardRGBEncoder().decode(torch.from_numpy(drawn)).numpy()
    ref, torch_s = str(folder / "ref.pkl"), write_dataset(folder / "torch.zip", images)
    with random_detectors():
        reference(RefRequest(data=folder / "digits.zip", dest=Path(ref), detection=FID))
        theirs = calc(CalcRequest(images=torch_s, ref=ref, num=args.images, detection=FID), WATCH).best["fid"]
        found = []
        for path in (snapshot, damaged):
            request = DrawRequest(net=str(path), rng="torch-cpu", batch=64)
            report = gen(GenRequest(draw=request, ref=ref, num=args.images, detection=FID), WATCH)
            found.append(report.best["fid"])
    print(
        f"FID of {args.images} digits: JAX {found[0]:.6f}, PyTorch {theirs:.6f}, apart {abs(found[0] - theirs):.1e} "
        f"(limit 1e-3); with {'.'.join(name)} negated {found[1]:.2f}"
    )
    return abs(found[0] - theirs) < 1e-3 and found[1] > 1.05 * found[0]


def nvlabs(args, folder: Path) -> bool:
    """Its code on a CPU, with torch's detectors: Inception, and a tiny transformer with fewer features than images."""
    if args.nvlabs is None:
        PARSER.error("nvlabs needs --nvlabs DIR")
    sys.path.insert(0, str(args.nvlabs))
    import calculate_metrics as theirs

    network, seen = torch_inception().float(), []
    tiny = torch_vit(TINY, vit_tensors(TINY), torch.float32)

    def detector(size, features):
        class Detector:
            feature_dim = size

            def __call__(self, x):
                seen.append(features(x.numpy()))
                return torch.from_numpy(seen[-1])

        return Detector

    kinds = {
        "fid": detector(2048, lambda x: torch_inception_features(network, x, torch.float32)),
        "fd_dinov2": detector(TINY.width, tiny),
    }
    for metric, kind in kinds.items():
        theirs.metric_specs[metric].detector_kwargs.class_name = kind
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
    coloured_digits(folder / "digits.zip")
    write_dataset(folder / "synthetic.zip", pictures(2000, 64))
    good = True
    for metric, name in itertools.product(kinds, ("digits", "synthetic")):
        good &= beside_nvlabs(theirs, seen, metric, folder / f"{name}.zip", args.images if metric == "fid" else 1000)
    return good


def beside_nvlabs(theirs, seen: list, metric: str, data: Path, count: int) -> bool:
    """The distance of two random choices of so many pictures."""
    found, features = {}, []
    paths = {(part, who): data.with_name(f"{data.stem}-{metric}-{part}-{who}.pkl")
             for part in ("ref", "images") for who in ("theirs", "ours")}  # fmt: skip
    for part, seed in (("ref", 1), ("images", 2)):
        stats = theirs.calculate_stats_for_files(
            str(data), num_images=count, seed=seed, max_batch_size=32, num_workers=0, verbose=False, metrics=[metric],
            dest_path=str(paths[part, "theirs"]), device=torch.device("cpu"),
        )  # fmt: skip
        found[part] = [each.stats for each in stats][-1]
        features.append(np.concatenate(seen).astype(np.float64))
        seen.clear()
    detection = Detection(metrics=(metric,), batch=32)
    with random_detectors():
        reference(RefRequest(data=data, dest=paths["ref", "ours"], num=count, seed=1, detection=detection))
        ours, mixed = (
            calc(CalcRequest(images=data, ref=str(paths["ref", who]), num=count, seed=2, detection=detection), WATCH)
            for who in ("ours", "theirs")
        )
    ours, mixed = ours.best[metric], mixed.best[metric]
    wanted = theirs.calculate_metrics_from_stats(found["images"], found["ref"], [metric], verbose=False)[metric]
    back = theirs.calculate_metrics_from_stats(found["images"], str(paths["ref", "ours"]), [metric], verbose=False)
    their_statistics = (read_statistics(paths[part, "theirs"])[metric] for part in ("images", "ref"))
    formula, exact = frechet_distance(*their_statistics).value, of_features(*features)
    print(
        f"nvlabs, {metric} of {count} {data.stem}: theirs {wanted:.6f}, from their features {exact:.6f}, "
        f"ours {ours:.6f}, of their reference {mixed:.6f}, our distance of their statistics {formula:.6f}, "
        f"theirs of our reference {back[metric]:.6f}"
    )
    # Of fewer images than features the covariances are singular, and scipy's root of their product is off by 3e-5.
    # What is right there is what the features themselves say.
    theirs_is_right = count > features[0].shape[1]
    pairs = [(ours, exact), (mixed, exact), (formula, exact), (back[metric], wanted)]
    pairs += [(ours, wanted)] * theirs_is_right
    return all(abs(value - other) <= max(1e-5 * other, 1e-6) for value, other in pairs)


def of_features(one: np.ndarray, other: np.ndarray) -> float:
    """The Fréchet distance of features [N, D] without their covariances: the trace of the root is the sum of the
    singular values of A Bᵀ, with A and B the centred features over the root of N - 1."""
    a, b = ((each - each.mean(axis=0)) / np.sqrt(len(each) - 1) for each in (one, other))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    apart = one.mean(axis=0) - other.mean(axis=0)
    return float(apart @ apart + np.square(a).sum() + np.square(b).sum() - 2 * root)


def coloured_digits(path: Path):
    """The digits that networks are trained with, each in a colour of its own: NVlabs' detectors take three channels."""
    images = digits()[0]
    tint = np.random.default_rng(0).uniform(0.3, 1, (len(images), 3, 1, 1))
    write_dataset(path, (images * tint).astype(np.uint8))


def main(argv=None) -> int:
    args = PARSER.parse_args(argv)
    good = True
    for part in args.only:
        with tempfile.TemporaryDirectory() as folder:
            found = globals()[part](args, Path(folder))
        print(f"{part}: {'as it should be' if found else 'NOT AS IT SHOULD BE'}", flush=True)
        good &= found
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
