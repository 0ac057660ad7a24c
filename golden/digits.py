"""Trains the digits network: a small class-conditional EDM2 on scikit-learn's 8x8 digits.

    python -m golden.digits train --outdir runs/digits
    python -m golden.digits data digits.zip --classes 0,1,2,3,4
    python -m golden.digits sample golden/digits.pkl --picture golden/digits.png

`train` writes EMA snapshots with std 0.050 and 0.100 along the way; `golden/digits.pkl` is the last one with
std 0.100, and `golden/digits-guide.pkl`, its guide, the one of 128 kimg. `data` writes the training digits as a
dataset for edm2-train and NVlabs' train_edm2.py; `golden/digits-five.zip` is that of the first five classes. `sample`
draws 1,000 digits with 32 Heun steps and reports how many of them a classifier recognises that was trained on the same
real digits as the network, and beside it that classifier's figure on real digits held out.
"""

import argparse
import io
import json
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from jax_edm2.torch_ref.encoders import StandardRGBEncoder
from jax_edm2.torch_ref.network import Precond
from jax_edm2.torch_ref.sampling import heun, noise_levels
from jax_edm2.torch_ref.snapshot import write_snapshot
from jax_edm2.torch_ref.training import EDM2Loss, PowerFunctionEMA, learning_rate

SEED = 0
CONFIG = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 10,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 32,
    "dropout": 0.1,
}
LOSS = {"P_mean": -0.8, "P_std": 1.6}  # as for NVlabs' pixel networks
BATCH = 128
BATCHES = 4_000
SNAPSHOT_EVERY = 500
SCHEDULE = {"ref_lr": 0.01, "ref_batches": 1_000, "rampup_nimg": 50_000}


def digits():
    """Real digits: uint8 images [N, 1, 8, 8] and labels [N], for training and held out."""
    images, labels = load_digits(return_X_y=True)
    images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=SEED)


def write_data(path, classes=range(10)):
    """The training digits of some classes as NVlabs' dataset_tool.py would write them: a ZIP of PNG files."""
    from PIL import Image

    images, _, labels, _ = digits()
    pairs = []
    with zipfile.ZipFile(path, "w") as archive:  # whose entries have no date: it is the same each time
        for number in np.flatnonzero(np.isin(labels, list(classes))):
            content = io.BytesIO()
            Image.fromarray(images[number, 0]).save(content, "PNG")
            pairs.append([f"{number:05d}.png", int(labels[number])])
            archive.writestr(zipfile.ZipInfo(pairs[-1][0]), content.getvalue())
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": pairs}))


def one_hot(labels):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), CONFIG["label_dim"]).to(torch.float32)


def train(outdir, batches=BATCHES):
    """Train from SEED for `batches` steps and write snapshots to `outdir`."""
    outdir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    images, _, labels, _ = digits()
    encoder = StandardRGBEncoder()
    images = encoder.encode_latents(torch.as_tensor(images))
    labels = one_hot(labels)

    net = Precond(**CONFIG).train()
    ema = PowerFunctionEMA(net)
    loss_fn = EDM2Loss(**LOSS)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    start = time.monotonic()
    for step in range(batches):
        nimg = step * BATCH
        optimizer.param_groups[0]["lr"] = learning_rate(nimg, BATCH, **SCHEDULE)
        picks = torch.randint(len(images), [BATCH])
        loss = loss_fn(net, images[picks], labels[picks])
        optimizer.zero_grad()
        (loss.sum() / BATCH).backward()
        optimizer.step()
        nimg += BATCH
        ema.update(nimg, BATCH)
        if (step + 1) % SNAPSHOT_EVERY == 0 or step + 1 == batches:
            print(f"{nimg // 1000:5d} kimg  loss {loss.mean():7.4f}  {time.monotonic() - start:5.0f} s", flush=True)
            for std, average in zip(ema.stds, ema.nets, strict=True):
                path = outdir / f"network-snapshot-{nimg // 1000:07d}-{std:.3f}.pkl"
                write_snapshot(path, average, encoder=encoder, loss_fn=loss_fn, dataset_kwargs={"name": "digits"})


def draw(net, per_class, seed=SEED):
    """Sample `per_class` digits of each class: uint8 images [10 per_class, 1, 8, 8] and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.repeat(np.arange(net.label_dim), per_class)
    shape = [len(labels), net.img_channels, net.img_resolution, net.img_resolution]
    noise = torch.randn(shape, generator=generator)
    condition = one_hot(labels)
    samples = heun(lambda x, sigma: net(x, sigma, condition), noise, noise_levels())
    return StandardRGBEncoder().decode(samples).numpy(), labels


class DigitClassifier:
    """A support vector machine on the real training digits, for uint8 images [N, 1, 8, 8]."""

    def __init__(self):
        train_images, self.test_images, train_labels, self.test_labels = digits()
        self.model = SVC(gamma=0.001).fit(self._features(train_images), train_labels)

    @staticmethod
    def _features(images):
        return images.reshape(len(images), -1) * (16 / 255)

    def accuracy(self, images, labels):
        return float(self.model.score(self._features(images), labels))

    def test_accuracy(self):
        return self.accuracy(self.test_images, self.test_labels)


def contact_sheet(images, columns, scale=6):
    """uint8 images [N, 1, H, W] as one picture, N / columns rows, each pixel `scale` wide, 2 pixels between them."""
    tiles = np.pad(images[:, 0].repeat(scale, 1).repeat(scale, 2), ((0, 0), (1, 1), (1, 1)), constant_values=255)
    rows = [np.concatenate(list(tiles[i : i + columns]), axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows, axis=0)


def load_network(path):
    """The network of a snapshot that this script wrote, in float32."""
    from jax_edm2.converter.snapshot import read_snapshot  # not needed for training

    snapshot = read_snapshot(path)
    net = Precond(**snapshot.init_kwargs)
    net.load_state_dict({name: torch.from_numpy(snapshot.read(name)).float() for name in snapshot.tensors})
    return net.eval()


def sample(path, picture=None):
    """Draw 1,000 digits, say how many are recognised, and save ten of each class as `picture`."""
    images, labels = draw(load_network(path), per_class=100)
    classifier = DigitClassifier()
    print(f"recognised: {classifier.accuracy(images, labels):.1%} of {len(images)} samples of {path}")
    print(f"            {classifier.test_accuracy():.1%} of {len(classifier.test_labels)} real digits held out")
    if picture:
        from PIL import Image

        Image.fromarray(contact_sheet(images.reshape(10, 100, 1, 8, 8)[:, :10].reshape(100, 1, 8, 8), 10)).save(picture)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.digits", description="Train and sample the digits network.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("--outdir", type=Path, required=True)
    command = commands.add_parser("data")
    command.add_argument("zip", type=Path)
    command.add_argument("--classes", type=lambda text: [int(digit) for digit in text.split(",")], default=range(10))
    command = commands.add_parser("sample")
    command.add_argument("snapshot", type=Path)
    command.add_argument("--picture", type=Path)
    args = parser.parse_args(argv)
    if args.command == "train":
        train(args.outdir)
        return None
    if args.command == "data":
        write_data(args.zip, args.classes)
        return None
    from jax_edm2.converter.errors import ConverterError

    try:
        return sample(args.snapshot, args.picture)
    except ConverterError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
