"""`make datasets`: edm2-dataset beside NVlabs' dataset_tool.py, on the same pictures.

    python -m tests.surveys.datasets --nvlabs DIR [--encoded N]

Hundreds of pictures of odd sizes, in a dozen modes and formats, with classes by folders, by dataset.json, with a label
lacking, and with none: for every transform the archives must be equal in names and their order, pixels and labels.
Then pictures are encoded with the published encoder's shapes and random weights; NVlabs' code uses diffusers for that.
Its tool wants CUDA, which is put aside here. Last, how fast both are.
"""

import argparse
import copy
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import torch

from jax_edm2.converter.dataset.convert import ConvertRequest, convert
from jax_edm2.converter.dataset.latents import EncodeRequest, encode
from jax_edm2.converter.threads import cpus
from jax_edm2.vae import load_vae_encoder
from tests.jax_edm2.test_vae import PUBLISHED, AutoencoderKL, torch_vae

SIDE = 256  # of the pictures that are encoded

NVLABS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
to = torch.Tensor.to
torch.Tensor.to = lambda self, *args, **kwargs: self if args == ("cuda",) else to(self, *args, **kwargs)
import dataset_tool
dataset_tool.cmdline(sys.argv[2:])
"""
KINDS = [  # mode, format, ending
    ("RGB", "PNG", "png"), ("L", "PNG", "png"), ("RGBA", "PNG", "png"), ("P", "PNG", "PNG"), ("1", "PNG", "png"),
    ("LA", "PNG", "png"), ("I;16", "PNG", "png"), ("RGB", "JPEG", "JPEG"), ("L", "JPEG", "jpg"),
    ("CMYK", "JPEG", "jpg"), ("RGB", "WEBP", "webp"), ("P", "GIF", "gif"), ("RGB", "BMP", "bmp"),
    ("CMYK", "TIFF", "tif"), ("RGB", "PPM", "ppm"),
]  # fmt: skip
TRANSFORMS = {
    "none": ["--resolution=64x64"],
    "center-crop": ["--transform=center-crop", "--resolution=64x64"],
    "center-crop-wide": ["--transform=center-crop-wide", "--resolution=128,72"],
    "center-crop-dhariwal": ["--transform=center-crop-dhariwal", "--resolution=32x32"],
}


def draw(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> PIL.Image.Image:
    """Noise over large shapes, so that both the filters and what is cut are seen."""
    small = PIL.Image.fromarray(rng.integers(0, 256, (4, 4, 4), np.uint8), "RGBA")
    shapes = np.asarray(small.resize(size, PIL.Image.Resampling.BICUBIC)).astype(int)
    pixels = np.clip(shapes + rng.integers(-9, 10, shapes.shape), 0, 255).astype(np.uint8)
    image = PIL.Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        return PIL.Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 3)
    return image if mode == "RGBA" else image.convert("LA") if mode == "LA" else image.convert("RGB").convert(mode)


def make(folder: Path, count: int) -> Path:
    """So many pictures in four folders and beside them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        mode, kind, ending = KINDS[number % len(KINDS)]
        within = folder / ["", "cats", "Dogs", "dogs/old", "zebras"][int(rng.integers(5))]
        within.mkdir(parents=True, exist_ok=True)
        image = draw(rng, mode, tuple(rng.integers(20, 400, 2).tolist()))
        image.save(within / f"{rng.integers(1000)} {number}.{ending}", kind)
    (folder / "notes.txt").write_text("no picture")
    return folder


def packed(folder: Path, path: Path, labels: dict[str, int] | None) -> Path:
    """A folder as a ZIP, in no order."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    with zipfile.ZipFile(path, "w") as archive:
        for name in np.random.default_rng(1).permutation(names):
            archive.write(folder / name, name)
        pairs = None if labels is None else [[name, label] for name, label in labels.items()]
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return path


def with_nvlabs(clone: Path, *arguments: object):
    command = [sys.executable, "-c", NVLABS, str(clone), *map(str, arguments)]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"NVlabs' tool: {done.stderr[-2000:]}")


def content(path: Path) -> Iterator[tuple[str, object]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(".png"):
                yield name, np.asarray(PIL.Image.open(io.BytesIO(data))).tolist()
            else:
                yield name, json.loads(data) if name.endswith(".json") else np.load(io.BytesIO(data))


def conversions(clone: Path, folder: Path, count: int) -> int:
    """How many conversions differ."""
    source = make(folder / "pictures", count)
    names = [file.relative_to(source).as_posix() for file in sorted(source.rglob("*.*")) if file.suffix != ".txt"]
    labels = {name: number % 7 for number, name in enumerate(names)}
    lacking = dict(list(labels.items())[1:])
    sources = {
        "folders": source,
        "dataset.json": packed(source, folder / "labelled.zip", labels),
        "a label lacks": packed(source, folder / "lacking.zip", lacking),
        "no labels": packed(source, folder / "unlabelled.zip", None),
    }
    wrong = 0
    runs = [(*pair, []) for pair in itertools.product(sources, TRANSFORMS)]
    for number, (kind, name, more) in enumerate([*runs, ("folders", "center-crop", ["--max-images=17"])]):
        theirs, ours = folder / f"theirs{number}.zip", folder / f"ours{number}.zip"
        arguments = [*TRANSFORMS[name], *more]
        with_nvlabs(clone, "convert", f"--source={sources[kind]}", f"--dest={theirs}", *arguments)
        given = dict(argument[2:].split("=") for argument in arguments)
        width, height = map(int, given["resolution"].replace(",", "x").split("x"))
        most = int(given["max-images"]) if more else None
        request = ConvertRequest(sources[kind], ours, given.get("transform"), (width, height), most)
        report = convert(request, warn=lambda line: None)
        equal = list(content(theirs)) == list(content(ours))
        wrong += not equal
        print(f"{'ok ' if equal else 'BAD'} convert  {kind:14}{name:22}{report.images:5} images of "
              f"{report.shape[1]:4}, {report.skipped:3} too small, {report.classes} classes", flush=True)  # fmt: skip
    return wrong


def encoding(clone: Path, folder: Path, vae: AutoencoderKL, count: int) -> int:
    """1 if archives are unlike, or our latents further from diffusers' in float64 than they may be."""
    pictures = folder / "square.zip"
    convert(ConvertRequest(folder / "pictures", pictures, "center-crop", (SIDE, SIDE), count), warn=lambda line: None)
    theirs, ours = folder / "theirs.zip", folder / "ours.zip"
    with_nvlabs(clone, "encode", f"--source={pictures}", f"--dest={theirs}", f"--model-url={folder / 'vae'}")
    encode(EncodeRequest(pictures, ours, str(folder / "vae")))
    exact, errors = copy.deepcopy(vae).double(), {"NVlabs'": [0.0, 0.0], "ours": [0.0, 0.0]}
    equal = True
    for (_, picture), (name, expected), (other, found) in zip(*map(content, (pictures, theirs, ours)), strict=True):
        if not isinstance(expected, np.ndarray):
            equal &= (name, expected) == (other, found)
            continue
        equal &= (name, expected.shape, expected.dtype) == (other, found.shape, found.dtype)
        with torch.inference_mode():
            truth = exact.encode(torch.tensor(picture, dtype=torch.float64).permute(2, 0, 1)[None] / 255)["latent_dist"]
        for whose, array in (("NVlabs'", expected), ("ours", found)):
            for part, (half, true) in enumerate(zip(np.split(array, 2), (truth.mean, truth.std), strict=True)):
                error = float(np.linalg.norm(half - true[0].numpy()) / np.linalg.norm(true))
                errors[whose][part] = max(errors[whose][part], error)
    sound = equal and max(errors["ours"]) <= 1e-5
    print(f"{'ok ' if sound else 'BAD'} encode   {count} images of {SIDE} x {SIDE}: names and labels {'equal' * equal}")
    for whose, (mean, std) in errors.items():
        print(f"    {whose:8} from diffusers in float64: means {mean:.1e}, standard deviations {std:.1e} at most")
    return int(not sound)


def speed(folder: Path, vae: AutoencoderKL):
    """Images a second of both encoders, in turns, each with all processors: the best of three."""
    encoder, params = load_vae_encoder(folder / "vae")
    compute = jax.jit(encoder)
    pictures = np.random.default_rng(0).random((4, 3, SIDE, SIDE), np.float32)
    torch.set_num_threads(cpus())

    def of_torch():
        with torch.inference_mode():
            vae.encode(torch.from_numpy(pictures))["latent_dist"].std.numpy()

    def of_jax():
        np.asarray(compute(params, pictures))

    rates = {"torch": 0.0, "JAX": 0.0}
    for turn in range(4):
        for name, call in (("torch", of_torch), ("JAX", of_jax)):
            began = time.perf_counter()
            call()
            rates[name] = max(rates[name], (turn > 0) * len(pictures) / (time.perf_counter() - began))
    found = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
    print(f"    images of {SIDE} x {SIDE} a second: {found}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.datasets", description=__doc__.splitlines()[0])
    parser.add_argument("--nvlabs", type=Path, required=True, help="a clone of github.com/NVlabs/edm2")
    parser.add_argument("--count", type=int, default=300, help="of pictures to convert")
    parser.add_argument("--encoded", type=int, default=4, help="of pictures to encode")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = conversions(args.nvlabs.resolve(), Path(folder), args.count)
        vae = torch_vae(**PUBLISHED)
        vae.save_pretrained(Path(folder, "vae"))
        wrong += encoding(args.nvlabs.resolve(), Path(folder), vae, args.encoded)
        speed(Path(folder), vae)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
