"""One architecture, three descriptions: expected_tree, the Flax network, and torch_ref's state_dict."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings

from jax_edm2.config import ConfigError, EDM2Config, expected_tree
from jax_edm2.converter.names import jax_path, torch_name
from jax_edm2.network import Precond
from jax_edm2.torch_ref import network, snapshot
from jax_edm2.torch_ref.snapshot import published_config
from tests.support.networks import configs

MPARAMS = {"xs": 124.7, "s": 280.2, "m": 497.8, "l": 777.5, "xl": 1119.3, "xxl": 1523.2}  # the paper's Table 2


def torch_shapes(kwargs):
    import torch

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in network.Precond(**kwargs).state_dict().items()}


def flax_shapes(config):
    size = config.img_resolution
    x = jax.ShapeDtypeStruct((1, config.img_channels, size, size), jnp.float32)
    variables = jax.eval_shape(Precond(config).init, jax.random.key(0), x, jnp.ones(1))
    return {path: value.shape for path, value in flatten_dict(variables, sep="/").items()}


@settings(max_examples=60)
@given(kwargs=configs())
def test_expected_tree_is_torchs_and_names_are_a_bijection(kwargs):
    expected = expected_tree(EDM2Config(**kwargs))
    shapes = torch_shapes(kwargs)
    assert {jax_path(name): shape for name, shape in shapes.items()} == expected
    assert {torch_name(path) for path in expected} == set(shapes)
    assert all(jax_path(torch_name(path)) == path for path in expected)


@settings(max_examples=12)
@given(kwargs=configs())
def test_expected_tree_is_flaxs(kwargs):
    config = EDM2Config(**kwargs)
    assert flax_shapes(config) == expected_tree(config)


@pytest.mark.parametrize("suffix", ["", "-uncond"])
@pytest.mark.parametrize("dataset", snapshot.DATASETS)
@pytest.mark.parametrize("size", snapshot.SIZES)
def test_published_sizes(size, dataset, suffix):
    kwargs, _ = published_config(f"edm2-{dataset}-{size}{suffix}")
    config = EDM2Config(**kwargs)
    tree = expected_tree(config)
    assert {jax_path(name): shape for name, shape in torch_shapes(kwargs).items()} == tree
    parameters = {path: shape for path, shape in tree.items() if path.startswith("params/")}
    assert len(parameters) == (198 if suffix else 199)
    assert len(tree) == len(parameters) + 4
    if not suffix:
        count = sum(jax.numpy.prod(jnp.array(shape)).item() if shape else 1 for shape in parameters.values())
        assert abs(count / 1e6 - MPARAMS[size]) < 0.06


def test_flax_network_of_a_published_size():
    config = EDM2Config(**published_config("edm2-img512-xs")[0])
    assert flax_shapes(config) == expected_tree(config)


@settings(max_examples=30)
@given(kwargs=configs())
def test_config_is_hashable_and_survives_json(kwargs):
    config = EDM2Config(**kwargs)
    assert EDM2Config(**json.loads(json.dumps(config.to_json()))) == config
    assert hash(EDM2Config(**kwargs)) == hash(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_resolution": 0}, "img_resolution must be an integer from 1"),
        (
            {"img_resolution": 10, "channel_mult": [1, 2, 3]},
            "must be a multiple of 4 for 3 levels, not 10",
        ),
        ({"label_dim": -1}, "label_dim must be an integer from 0"),
        ({"label_dim": True}, "label_dim must be an integer from 0 to 1048576, not True"),
        ({"model_channels": 2**40}, "model_channels must be an integer"),
        ({"num_blocks": 2**20}, "num_blocks must be an integer from 0 to 1000"),
        ({"channel_mult": []}, "channel_mult must not be empty"),
        ({"channel_mult": [1, 1.5]}, "channel_mult must be a short list of integers"),
        ({"channel_mult": 3}, "channel_mult must be a short list of integers"),
        ({"sigma_data": 0}, "sigma_data must be a number from 1e-06"),
        ({"sigma_data": float("nan")}, "sigma_data must be a number"),
        ({"res_balance": 1500}, "res_balance must be a number from -1000 to 1000, not 1500"),
        ({"dropout": 1.5}, "dropout must be a number from 0 to 1, not 1.5"),
        ({"num_blocks": 300}, "make 1,204 blocks; at most 1,000 are supported"),
        (
            {"img_resolution": 2**14, "model_channels": 4, "channel_mult": [1], "num_blocks": 0},
            "is too large for a network of",
        ),
        ({"resample_filter": [1, 2, 1]}, "resample_filter must be an even number of numbers"),
        ({"resample_filter": [1, -1]}, "resample_filter must not sum to 0"),
        ({"use_fp16": 1}, "use_fp16 must be true or false"),
        ({"model_channels": 50, "channels_per_head": 16}, "do not divide into 3 attention heads"),
    ],
)
def test_impossible_configurations_say_what_is_wrong(change, message):
    with pytest.raises(ConfigError) as error:
        EDM2Config(**{"img_resolution": 16, "img_channels": 3, "label_dim": 0, "channel_mult": [1, 2], **change})
    assert message in str(error.value)


def test_all_problems_of_a_configuration_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        EDM2Config(img_resolution=0, img_channels=0, label_dim=0, dropout=2)
    assert str(error.value).count(";") == 2
