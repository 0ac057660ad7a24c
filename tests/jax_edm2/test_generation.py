"""From seeds to pictures: draws in NVlabs' order, and pictures that hang on nothing but their seed."""

import os
import subprocess

import jax
import numpy as np
import pytest
import torch

import jax_edm2
from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT
from jax_edm2.decoding import decode_pixels, make_decoder
from jax_edm2.generation import Draw, Generator, JaxStreams, share
from jax_edm2.record import Encoder
from jax_edm2.settings import Churn, Settings
from jax_edm2.torch_ref.encoders import StandardRGBEncoder

QUICK = Settings(num_steps=4)


def test_draws_in_the_order_of_generate_images(digits):
    seeds = [5, 17, 2**32 + 1]
    draw = Draw.of(digits[0].config, seeds, rng="torch-cpu", churn_draws=2)
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed % 2**32)
        noise = torch.randn([1, 8, 8], generator=generator)
        label = torch.randint(10, size=[], generator=generator)
        churn = torch.stack([torch.randn([1, 8, 8], generator=generator) for _ in range(2)])
        np.testing.assert_allclose(draw.noise[i], noise, rtol=0, atol=7e-7)  # measured: 2.4e-7
        np.testing.assert_allclose(draw.churn_noise[:, i], churn, rtol=0, atol=3.6e-7)  # measured: 1.2e-7
        assert draw.classes[i] == label
    chosen = Draw.of(digits[0].config, seeds, rng="torch-cpu", class_idx=3, churn_draws=2)
    assert chosen.classes.tolist() == [3, 3, 3]
    assert np.array_equal(chosen.churn_noise, draw.churn_noise)  # the class is drawn all the same


def collect(generator, seeds, batch=32):
    batches = list(generator(seeds, batch))
    assert [seed for b in batches for seed in b.seeds] == list(seeds)
    latents = np.concatenate([np.asarray(b.latents)[: len(b.seeds)] for b in batches])
    return latents, [c for b in batches for c in b.classes], [len(b.seeds) for b in batches]


def test_batches(digits):
    one = jax.devices()[:1]
    generator = Generator(*digits, settings=QUICK, devices=one, decoder=make_decoder(None))
    latents, classes, sizes = collect(generator, range(7), batch=3)
    assert sizes == [3, 3, 1]
    assert generator.batch_size(33, 32) == 17
    whole, same, sizes = collect(generator, range(7))
    assert (sizes, same) == ([7], classes)
    assert np.abs(whole - latents).max() < 3.6e-4  # 4 steps to sigma 0.002 magnify rounding; measured: 1.2e-4
    assert list(generator([])) == []
    (batch,) = generator([4])
    np.testing.assert_array_equal(batch.pictures, decode_pixels((), batch.latents))


@pytest.mark.parametrize("settings", [QUICK, Settings(num_steps=4, churn=Churn(4.0))])
def test_two_devices_give_what_one_gives(tiny_network, tiny_guide_checkpoint, settings):
    guided, guide = Settings(**{**vars(settings), "guidance": 1.5}), jax_edm2.load(tiny_guide_checkpoint)
    runs = [
        collect(Generator(*tiny_network, guide=guide, settings=guided, devices=devices), range(5), batch=2)
        for devices in (jax.devices()[:1], jax.devices()[:2])
    ]
    assert [sizes for *_, sizes in runs] == [[2, 2, 1], [4, 1]]
    assert np.array_equal(runs[0][0], runs[1][0])  # bit for bit
    assert runs[0][1] == runs[1][1]


def test_eight_devices_give_what_one_gives(tiny_checkpoint):
    """Bit for bit, of programs that are optimised as users have them."""
    code = (
        "import sys, hashlib, jax, numpy as np, jax_edm2;"
        "from jax_edm2.generation import Generator; from jax_edm2.settings import Settings;"
        f"network = jax_edm2.load({str(tiny_checkpoint)!r});"
        "generator = Generator(*network, settings=Settings(num_steps=4));"
        "batches = [np.asarray(b.latents)[:len(b.seeds)] for b in generator(range(9), batch=1)];"
        "print(len(jax.devices()), len(batches), hashlib.sha256(np.concatenate(batches).tobytes()).hexdigest())"
    )
    outputs = []
    for count in (1, 8):
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "PYTHONPATH": ROOT, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(processes.python(code), capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout.split())
    assert [output[:2] for output in outputs] == [["1", "9"], ["8", "2"]]
    assert outputs[0][2] == outputs[1][2]


def test_processes_share_the_seeds():
    for count in (1, 2, 3, 7):
        parts = [share(range(20), index, count) for index in range(count)]
        assert [seed for part in parts for seed in part] == list(range(20))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_jax_streams():
    streams = JaxStreams([1, 2])
    first, second = streams.randn((4, 8, 8)), streams.randn((4, 8, 8))
    assert abs(np.std([first, second]) - 1) < 0.1
    assert not np.array_equal(first, second)
    assert np.array_equal(JaxStreams([9, 2]).randn((4, 8, 8))[1], first[1])
    labels = JaxStreams(range(300)).randint(10)
    assert set(np.asarray(labels).tolist()) == set(range(10))


def test_pixels_are_decoded_as_in_torch():
    x = np.random.default_rng(0).uniform(-1.3, 1.3, (4, 3, 64, 64)).astype(np.float32)
    theirs = StandardRGBEncoder().decode(torch.from_numpy(x)).numpy()
    ours = np.asarray(decode_pixels((), x))
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs)


def test_what_cannot_be_generated(digits):
    with pytest.raises(ValueError, match="class 10 is out of range: the network has classes 0 to 9"):
        Generator(*digits, class_idx=10)
    with pytest.raises(ValueError, match="rng must be one of torch-cuda, torch-cpu, jax, not 'numpy'"):
        Generator(*digits, rng="numpy")
    with pytest.raises(ValueError, match="guidance 2 needs a guide"):
        Generator(*digits, settings=Settings(guidance=2.0))
    with pytest.raises(ValueError, match="knows how to decode what a WaveletEncoder encodes"):
        make_decoder(Encoder("WaveletEncoder"))
    with pytest.raises(ValueError, match="latents take a VAE"):
        make_decoder(Encoder("StabilityVAEEncoder", (1.0,) * 4, (0.0,) * 4))
