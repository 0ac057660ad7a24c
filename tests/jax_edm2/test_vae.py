"""The VAE's halves are those of diffusers' AutoencoderKL, and latents become pictures as in NVlabs' encoder."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from jax_edm2.decoding import make_decoder, raw_latents
from jax_edm2.record import Encoder
from jax_edm2.torch_ref.encoders import StabilityVAEEncoder
from jax_edm2.vae import CONFIG, WEIGHTS, VAEConfig, VAEError, load_vae, load_vae_encoder
from jax_edm2.vae.network import _Layers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL

PUBLISHED = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SMALL = {"block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
NO_ATTENTION = {
    **SMALL, "mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False,
    "latent_channels": 3,
}  # fmt: skip
BOUND = 3e-6  # relative; measured: 1.0e-6 decoding (PyTorch itself: 2.1e-6), 1.2e-6 encoding (PyTorch: 1.3e-6)


def torch_vae(**config):
    """A VAE with random weights that keep magnitudes."""
    torch.manual_seed(0)
    levels = len(config["block_out_channels"])
    config = {"latent_channels": 4, **config}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    vae = AutoencoderKL(in_channels=3, out_channels=3, **blocks, **config).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        scale = 1 / np.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.05
        parameter.copy_(torch.randn_like(parameter) * scale + (parameter.ndim == 1 and name.endswith("weight")))
    return vae


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    vae = torch_vae(**SMALL)
    vae.save_pretrained(folder)
    return vae, folder


@pytest.mark.parametrize("config", [PUBLISHED, SMALL, NO_ATTENTION], ids=["published", "small", "no attention"])
def test_decoder_equals_diffusers(config, tmp_path):
    vae = torch_vae(**config)
    vae.save_pretrained(tmp_path)
    decoder, params = load_vae(tmp_path)
    assert decoder.config.block_out_channels == config["block_out_channels"]
    z = torch.randn(2, decoder.config.latent_channels, 8, 6)
    ours = np.asarray(jax.jit(decoder)(params, z.numpy()), np.float64)
    truth = vae.double().decode(z.double())["sample"].numpy()
    assert ours.shape == truth.shape == (2, 3, 8 * decoder.scale, 6 * decoder.scale)
    assert np.linalg.norm(ours - truth) / np.linalg.norm(truth) < BOUND


@pytest.mark.parametrize("size", [(8, 24), (20, 17)], ids=str)  # in pixels; the second leaves some over
@pytest.mark.parametrize("config", [PUBLISHED, SMALL, NO_ATTENTION], ids=["published", "small", "no attention"])
def test_encoder_equals_diffusers(config, size, tmp_path):
    vae = torch_vae(**config)
    vae.save_pretrained(tmp_path)
    encoder, params = load_vae_encoder(tmp_path)
    x = torch.rand(2, 3, *size)
    ours = np.asarray(jax.jit(encoder)(params, x.numpy()), np.float64)
    truth = vae.double().encode(x.double())["latent_dist"]
    expected = torch.cat([truth.mean, truth.std], dim=1).numpy()
    channels = 2 * encoder.config.latent_channels
    assert ours.shape == expected.shape == (2, channels, *(side // encoder.config.scale for side in size))
    for half in (slice(channels // 2), slice(channels // 2, None)):
        assert np.linalg.norm(ours[:, half] - expected[:, half]) / np.linalg.norm(expected[:, half]) < BOUND


def test_norms_of_large_pictures_are_exact():
    """Of four at once XLA added up every value of a group in turn, on a CPU."""
    x = np.random.default_rng(0).standard_normal((4, 256, 256, 8)).astype(np.float32) + 3
    params = {"norm.weight": jnp.ones(8), "norm.bias": jnp.zeros(8)}
    found = np.asarray(jax.jit(lambda x: _Layers(params, 2).norm("norm", x))(x), np.float64)
    groups = x.astype(np.float64).reshape(4, 256, 256, 2, 4)
    mean, std = (f(groups, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.std))
    error = found - ((groups - mean) / std).reshape(x.shape)
    assert np.abs(error.mean((1, 2))).max() < 7e-7  # measured: 2.3e-7, and 1.4e-5 without the order of our sums


@pytest.mark.parametrize(("logvar", "std"), [(-1000, np.exp(-15)), (1000, np.exp(10))])
def test_standard_deviations_are_bounded(small, logvar, std):
    """As diffusers bounds them."""
    encoder, params = load_vae_encoder(small[1])
    channels = encoder.config.latent_channels
    bias = params["quant_conv.bias"].at[channels:].set(float(logvar))
    found = encoder({**params, "quant_conv.bias": bias}, np.zeros((1, 3, 8, 8), np.float32))
    np.testing.assert_allclose(np.asarray(found)[:, channels:], std, rtol=1e-6)


def test_published_names_and_shapes():
    """sd-vae-ft-mse: 49.5 M parameters in the decoder, 34.2 M in the encoder."""
    tensors = VAEConfig().encoder_tensors
    encoder = {name: shape for name, shape in tensors.items() if name.startswith("encoder.")}
    assert sum(int(np.prod(shape)) for shape in encoder.values()) == 34_163_592
    assert tensors["quant_conv.weight"] == (8, 8, 1, 1)
    assert tensors["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"] == (256, 128, 1, 1)
    tensors = VAEConfig().decoder_tensors
    decoder = {name: shape for name, shape in tensors.items() if name.startswith("decoder.")}
    assert sum(int(np.prod(shape)) for shape in decoder.values()) == 49_490_179
    assert tensors["post_quant_conv.weight"] == (4, 4, 1, 1)
    assert tensors["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"] == (256, 512, 1, 1)


def test_files_of_before_diffusers_018(small, tmp_path):
    """Published files call the attention's projections by older names."""
    _, folder = small
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    for load in (load_vae, load_vae_encoder):
        ours, theirs = load(tmp_path / WEIGHTS)[1], load(folder)[1]
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("load", "beginnings", "other", "missing"),
    [
        (load_vae, ("decoder.", "post_quant_conv."), load_vae_encoder, "encoder"),
        (load_vae_encoder, ("encoder.", "quant_conv."), load_vae, "decoder"),
    ],
)
def test_either_half_may_be_missing(small, tmp_path, load, beginnings, other, missing):
    tensors = safetensors.numpy.load_file(small[1] / WEIGHTS)
    half = {key: value for key, value in tensors.items() if key.startswith(beginnings)}
    safetensors.numpy.save_file(half, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((small[1] / CONFIG).read_bytes())
    assert load(tmp_path)[1].keys() == half.keys()
    with pytest.raises(
        VAEError, match=rf"does not hold the {missing} of an AutoencoderKL: - .*{missing}\..* is missing"
    ):
        other(tmp_path)


def test_pictures_equal_the_encoder_of_torch_ref(small):
    vae, folder = small
    encoder = StabilityVAEEncoder()
    encoder._vae = vae.float()
    record = Encoder("StabilityVAEEncoder", tuple(encoder.scale.tolist()), tuple(encoder.bias.tolist()))
    latents = np.random.default_rng(0).standard_normal((5, 4, 16, 16)).astype(np.float32) * 0.5
    theirs = encoder.decode(torch.from_numpy(latents)).numpy()
    decode, params = make_decoder(record, load_vae(folder), batch=2)  # two at a time, and one that is left
    ours = np.asarray(jax.jit(decode)(params, latents))
    assert (ours.shape, ours.dtype) == ((5, 3, 64, 64), np.uint8)
    assert np.mean((ours > 0) & (ours < 255)) > 0.2  # not all clipped
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours != theirs).mean() < 1.4e-4  # measured: 4.9e-5


def test_latent_statistics():
    """Raw latents with the statistics that NVlabs lists are white, with standard deviation 0.5, and come back."""
    encoder = StabilityVAEEncoder()
    record = Encoder("StabilityVAEEncoder", tuple(encoder.scale.tolist()), tuple(encoder.bias.tolist()))
    rng = np.random.default_rng(0)
    mean, std = (np.array(v)[:, None, None] for v in ((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)))
    raw = (rng.standard_normal((50, 4, 32, 32)) * std + mean).astype(np.float32)
    statistics = torch.from_numpy(np.concatenate([raw, np.zeros_like(raw)], axis=1))  # with no spread of their own
    white = encoder.encode_latents(statistics).numpy()
    assert np.abs(white.mean((0, 2, 3))).max() < 0.0045  # measured: 0.0015
    assert np.abs(white.std((0, 2, 3)) - 0.5).max() < 0.0066  # measured: 0.0022
    np.testing.assert_allclose(raw_latents(record, jnp.asarray(white)), raw, rtol=0, atol=5.7e-6)  # measured: 1.9e-6


def test_another_kind_of_decoder_is_refused(tmp_path):
    """diffusers' blocks with attention have the tensors of the plain ones, and more."""
    levels = len(SMALL["block_out_channels"])
    blocks = {"up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * (levels - 1)}
    down = {"down_block_types": ["DownEncoderBlock2D"] * levels}
    AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, **blocks, **down, **SMALL).save_pretrained(tmp_path)
    with pytest.raises(VAEError, match=r"\+ decoder.up_blocks.0.attentions.0.*is not part of it"):
        load_vae(tmp_path)
    load_vae_encoder(tmp_path)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "there is no such file"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"PK\x03\x04"), "is no safetensors file"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is no config.json of a VAE"),
        (lambda folder: (folder / CONFIG).write_text('{"_class_name": "VQModel"}'), "describes a VQModel"),
        (lambda folder: (folder / CONFIG).write_text('{"block_out_channels": [9]}'), r"\[9\] make no VAE"),
        (
            lambda folder: (folder / CONFIG).write_text('{"layers_per_block": "2"}'),
            "layers_per_block is '2'",
        ),
        (lambda folder: (folder / CONFIG).write_text('{"norm_num_groups": -4}'), "norm_num_groups is -4, which makes"),
        (lambda folder: (folder / CONFIG).write_text('{"use_post_quant_conv": "no"}'), "is 'no', which makes"),
        (lambda folder: (folder / CONFIG).unlink(), r"! post_quant|decoder.conv_in.weight is \[16, 4, 3, 3\], should"),
    ],
)
def test_broken_vaes(small, tmp_path, break_it, message):
    for name in (WEIGHTS, CONFIG):
        (tmp_path / name).write_bytes((small[1] / name).read_bytes())
    assert json.loads((tmp_path / CONFIG).read_text())["norm_num_groups"] == 4
    break_it(tmp_path)
    with pytest.raises(VAEError, match=message) as caught:
        load_vae(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
