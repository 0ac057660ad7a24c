"""What a denoiser refuses, in words that say what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_edm2
from jax_edm2.inputs import check_images

X = np.zeros((2, 1, 8, 8), np.float32)
ONE_HOT = np.eye(10, dtype=np.float32)


@pytest.mark.parametrize(
    ("x", "sigma", "labels", "text"),
    [
        (X.transpose(0, 2, 3, 1), 1.0, None, "[2, 8, 8, 1]: channels that come last are moved by x.transpose("),
        (np.zeros((2, 3, 8, 8), np.float32), 1.0, None, "images must be [N, 1, H, W], not [2, 3, 8, 8]: the netw"),
        (np.zeros((2, 1, 8, 7), np.float32), 1.0, None, "with H and W multiples of 2, not [2, 1, 8, 7]"),
        (X, np.ones(3, np.float32), None, "sigma must be one noise level, or [2], one for each image, not [3]"),
        (X, np.ones((1, 2), np.float32), None, "one for each image, not [1, 2]"),
        (X, 0.0, None, "sigma must be a noise level > 0, not 0"),
        (X, np.array([1, -2], np.float32), None, "> 0, not -2"),
        (X, np.array([np.nan, 1], np.float32), None, "> 0, not nan"),
        (X, 1.0, ONE_HOT[:3], "class_labels must be one-hot [2, 10], not float32 [3, 10]; see jax.nn.one_hot"),
        (X, 1.0, np.array([1, 2]), "class_labels must be one-hot [2, 10], not int"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("jit", [False, True])
def test_inputs_that_are_refused(digits, x, sigma, labels, text, jit):
    net, variables = digits
    call = jax.jit(lambda x: net.apply(variables, x, sigma, labels)) if jit else None
    with pytest.raises(ValueError, match="must be") as error:
        call(x) if call else net.apply(variables, x, sigma, labels)
    assert text in str(error.value)


def test_images_without_a_batch_are_refused(digits):
    """In the tests jaxtyping would be faster."""
    for x, text in (X[0], "[1, 8, 8]: a single one is x[None]"), (X[0, 0], "images must be [N, 1, H, W], not [8, 8]"):
        with pytest.raises(ValueError, match="must be") as error:
            check_images(digits[0].config, x)
        assert text in str(error.value)


@pytest.mark.parametrize("sigma", [1.0, np.ones(1, np.float32), np.ones((2, 1, 1, 1), np.float32)])
def test_inputs_that_are_taken(digits, sigma):
    net, variables = digits
    shape = jax.eval_shape(lambda x, labels: net.apply(variables, x, sigma, labels), X, ONE_HOT[:1]).shape
    assert shape == X.shape


def test_training_in_float16_is_refused(digits):
    """The digits are stored in float16: Adam would make NaN of them without a word."""
    net, variables = digits
    args = jnp.asarray(X), jnp.ones(2), jnp.asarray(X)
    with pytest.raises(
        ValueError,
        match=r"mpconv_weight is float16, .* becomes NaN: load\(path, dtype=jnp",
    ):
        jax_edm2.denoising_loss(net, variables, *args)
    with pytest.raises(ValueError, match="is float16"):
        net.apply(variables, X, 1.0, train=True, rngs={"dropout": jax.random.key(0)})
    for dtype in jnp.float32, jnp.bfloat16:
        trainable = jax.tree.map(lambda w, dtype=dtype: w.astype(dtype), variables)
        assert jax.eval_shape(lambda v: jax_edm2.denoising_loss(net, v, *args), trainable).shape == X.shape
