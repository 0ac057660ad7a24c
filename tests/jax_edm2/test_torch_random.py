"""The random streams are torch's."""

import json

import numpy as np
import pytest
import torch

from jax_edm2.golden.torch_streams import RECORD, distance
from jax_edm2.torch_random import TorchCPU, TorchCUDA, _philox

SHAPE = (4, 64, 64)  # of an img512 latent


def test_a_thousand_seeds_on_the_cpu():
    seeds = [*range(990), *(2**31 + 7 * i for i in range(10))]
    streams = TorchCPU(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = np.stack([torch.randn(SHAPE, generator=generator).numpy() for generator in generators])
    labels = [torch.randint(1000, size=[], generator=generator).item() for generator in generators]
    again = np.stack([torch.randn(SHAPE, generator=generator).numpy() for generator in generators])
    assert np.abs(streams.randn(SHAPE) - noise).max() <= 1e-6  # measured: 4.8e-7
    assert streams.randint(1000).tolist() == labels
    assert np.abs(streams.randn(SHAPE) - again).max() <= 1e-6


@pytest.mark.parametrize("shape", [(), (1,), (3,), (15,), (16,), (17,), (33,), (3, 5), (1, 8, 8), (3, 64, 64), (0,)])
def test_every_shape_on_the_cpu(shape):
    """Fewer than 16 values are drawn in another way, in pairs of which one is kept, and tails are drawn twice."""
    seeds = [0, 1, 2**32 - 1, 2**32 + 5]
    streams = TorchCPU(seeds)
    generators = [torch.Generator().manual_seed(seed % 2**32) for seed in seeds]
    for size in (shape, (3,), shape, (2,), shape):
        theirs = np.stack([torch.randn(size, generator=generator).numpy() for generator in generators])
        ours = streams.randn(size)
        assert (ours.shape, ours.dtype) == (theirs.shape, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # measured: 3.6e-7
        labels = [torch.randint(10, size=[], generator=generator).item() for generator in generators]
        assert streams.randint(10).tolist() == labels


def test_published_values_on_cuda():
    """torch.randn on a GPU with seed 0, as many a notebook shows it."""
    published = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
    noise = TorchCUDA([0]).randn(SHAPE)
    assert noise.shape == (1, *SHAPE)
    np.testing.assert_allclose(noise.reshape(-1)[:6], published, rtol=0, atol=7.8e-7)  # measured: 2.6e-7


def test_philox_known_answer():
    """Of Random123's known-answer test for philox4x32-10."""
    zero = np.zeros(1, np.uint64)
    assert [hex(word) for word in _philox(zero, zero, zero)[0].tolist()] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip


def test_tensors_larger_than_the_gpu():
    """Where there are more elements than threads, a thread's four values go to elements a whole grid apart."""
    threads, count = 512, 3 * 4 * 512 + 100
    many = TorchCUDA([7], threads=threads)
    values = many.randn((count,))[0]
    words = [_philox(*np.array([[r], [t], [7]], np.uint64))[0] for r, t in ((0, 0), (0, 511), (1, 5), (3, 99))]
    for (r, t), word in zip(((0, 0), (0, 511), (1, 5), (3, 99)), words, strict=True):
        for lane in range(4):
            if (element := (4 * r + lane) * threads + t) >= count:
                continue
            u, v = (word[lane // 2 * 2 + i].astype(np.float64) * 2.0**-32 + 2.0**-33 for i in range(2))
            wave = np.sin if lane % 2 == 0 else np.cos
            exact = np.sqrt(-2 * np.log(u)) * wave(2 * np.pi * v)
            assert values[element] == pytest.approx(exact, abs=1.2e-6)  # measured: 4e-7
    assert abs(values.std() - 1) < 0.05
    following = TorchCUDA([7], threads=threads)
    following._calls = 4  # what three and a bit rounds have used
    assert many.randint(1000) == following.randint(1000)


def test_generators_do_not_know_of_each_other():
    for kind in (TorchCPU, TorchCUDA):
        alone, together = kind([3]), kind([1, 3, 5])
        for _ in range(2):
            assert np.array_equal(alone.randn((4, 8, 8))[0], together.randn((4, 8, 8))[1])
            assert alone.randint(10)[0] == together.randint(10)[1]
        assert np.array_equal(kind([5]).randn((20,)), kind([5 + 2**32]).randn((20,)))


def test_the_record_of_torch():
    """golden/torch_streams.json: of this CPU's torch, and of GPUs where one was at hand."""
    record = json.loads(RECORD.read_text())
    assert "cpu" in record
    for device, found in record.items():
        worst, wrong = distance(device, found)
        assert wrong == 0
        assert worst < (1e-6 if device == "cpu" else 1e-5)  # measured on the CPU: 3.6e-7
    found["seeds"]["0"]["noises"][0]["first"][0] += 2e-5
    assert distance(device, found)[0] > 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), SHAPE, (5,), (1000, 1000)])
def test_cuda_itself(shape):
    gpu = torch.cuda.get_device_properties(0)
    seeds = [0, 1, 2**32 - 1]
    streams = TorchCUDA(seeds, threads=gpu.multi_processor_count * gpu.max_threads_per_multi_processor)
    generators = [torch.Generator("cuda").manual_seed(seed) for seed in seeds]
    for _ in range(3):
        theirs = torch.stack([torch.randn(shape, generator=g, device="cuda") for g in generators]).cpu().numpy()
        assert np.abs(streams.randn(shape) - theirs).max() < 1e-5  # the GPU's fast sines: 4e-7 expected
        labels = [torch.randint(1000, size=[], generator=g, device="cuda").item() for g in generators]
        assert streams.randint(1000).tolist() == labels
