"""Every public function that computes, on meshes of four devices, beside what it gives on one.

python -m tests.surveys.meshes [--quick]: with axes that are explicit and automatic; with variables in parts (FSDP),
replicated, and uncommitted; in and out of `jax.set_mesh`.
"""

import os

from tests.support.compiling import flags

os.environ["XLA_FLAGS"] = flags(devices=4)

import contextlib
import itertools
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_edm2
from jax_edm2.evaluation import Gathering
from jax_edm2.record import Encoder
from jax_edm2.vae import VAEConfig, VAEDecoder, VAEEncoder
from tests.support.detectors import tiny_detector

SMALL = {"num_blocks": 1, "channel_mult": [1], "channel_mult_emb": 1, "attn_resolutions": [8], "channels_per_head": 16}
BATCH, LABELS = 8, 4
BOUND = 9e-5  # of the largest value; measured: 2.9e-5 of Generator's step from sigma 80, 1.2e-5 of the rest


def stored(folder: str) -> Path:
    """A checkpoint of a small random network, whose layers are large enough for Winograd's convolutions."""
    config = jax_edm2.EDM2Config(8, 1, LABELS, model_channels=32, **SMALL)
    net = jax_edm2.Precond(config)
    x, sigma = jnp.zeros((1, 1, 8, 8)), jnp.ones(1)
    variables = net.init(jax.random.key(0), x, sigma, jnp.zeros((1, LABELS)))
    path = Path(folder, "small.safetensors")
    jax_edm2.save(path, net, jax.tree.map(lambda w: w + 0.5 if not w.ndim else w, variables))  # gains that are not 0
    return path


def inputs():
    rng = np.random.default_rng(0)
    shapes = (1, 8, 8), (4, 4, 4), (3, 8, 8)
    images, latents, pictures = (rng.standard_normal((BATCH, *shape), np.float32) for shape in shapes)
    sigma, labels = np.exp(np.linspace(-4, 4, BATCH, dtype=np.float32)), np.eye(LABELS, dtype=np.float32)
    return images, sigma, labels[np.arange(BATCH) % LABELS], latents, pictures


VAE = VAEConfig(block_out_channels=(16, 16), norm_num_groups=4, layers_per_block=0)


def half(tensors):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape, np.float32) / 4 for name, shape in tensors.items()}


def decoder():
    encoder = Encoder("StabilityVAEEncoder", scale=(1.0,) * 4, bias=(0.0,) * 4)
    return jax_edm2.make_decoder(encoder, (VAEDecoder(VAE), half(VAE.decoder_tensors)))


def everything(net, variables, weights, arrays):
    images, sigma, labels, latents, pictures = arrays
    settings = jax_edm2.Settings(num_steps=2, guidance=1.5)

    def loss(params, constants, images, sigma, labels):
        v = {"params": params, "constants": constants}
        return jnp.mean(jax_edm2.denoising_loss(net, v, images, sigma, images, labels))

    step = jax.jit(jax.value_and_grad(loss))
    loss_of, gradient = step(variables["params"], variables["constants"], images, sigma, labels)
    folded, folded_variables = jax_edm2.fold(net, variables)
    generator = jax_edm2.Generator(net, variables, settings=jax_edm2.Settings(num_steps=1))
    projected = jax_edm2.project_to_sphere(variables)
    gathering = Gathering([tiny_detector("fd_dinov2", None, None).detector], 1)
    gathering.add(np.asarray(pictures * 50 + 128).clip(0, 255).astype(np.uint8))
    gathering.settle()
    average = jax_edm2.update_average(variables, projected, images_seen=16, batch_size=8, std=0.1)
    return {
        "apply": jax.jit(net.apply)(variables, images, sigma, labels),
        "fold": jax.jit(folded.apply)(folded_variables, images, sigma, labels),
        "sample": jax_edm2.sample(net, variables, images, labels, guide=(net, variables), settings=settings),
        "denoising_loss": loss_of,
        "its gradient": jax.tree.leaves(gradient["unet"])[-1],
        "project_to_sphere": jax.tree.leaves(projected)[-1],
        "update_average": jax.tree.leaves(average)[-1],
        "make_decoder": jax.jit(decoder()[0])(weights[0], latents).astype(jnp.float32),
        "VAEEncoder": jax.jit(VAEEncoder(VAE))(weights[1], pictures),
        "Gathering": gathering.moments["fd_dinov2"].total,
        "Generator": np.concatenate([np.asarray(batch.latents) for batch in generator(range(BATCH))]),
    }


def main(quick: bool):
    # Programs whose parts meet must not overtake each other, as they may on a CPU.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    weights = decoder()[1], half(VAE.encoder_tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = stored(folder)
        net, plain = jax_edm2.load(path)
        truth = jax.tree.map(np.asarray, everything(net, plain, weights, inputs()))
        worst = 0.0
        for axes, layout, inside in itertools.product(
            (AxisType.Explicit, AxisType.Auto), ("parts", "replicated", "uncommitted"), (True, False)
        ):
            if quick and (axes, layout, inside) not in (
                (AxisType.Explicit, "parts", True), (AxisType.Explicit, "uncommitted", False)
            ):  # fmt: skip
                continue
            mesh = jax.make_mesh((4,), ("data",), axis_types=(axes,))
            split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
            in_parts = jax.tree.map(lambda w: split if w.ndim and w.shape[0] % 4 == 0 else everywhere, plain)  # noqa: B023
            where = {"parts": in_parts, "replicated": everywhere, "uncommitted": None}[layout]
            _, variables = jax_edm2.load(path, sharding=where)
            with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
                found = everything(net, variables, jax.device_put(weights, everywhere), jax.device_put(inputs(), split))
            for name, expected in truth.items():
                got = np.asarray(found[name])
                assert (got.shape, got.dtype) == (expected.shape, expected.dtype), (axes, layout, inside, name)
                error = float(np.abs(got - expected).max() / np.abs(expected).max())
                worst = max(worst, error)
                assert error <= BOUND, (axes, layout, inside, name, error)
            print(f"{axes.name:8} {layout:11} {'in' if inside else 'out of'} set_mesh: as on one device", flush=True)
    print(f"worst: {worst:.1e} of the largest value")


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
