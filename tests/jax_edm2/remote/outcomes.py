"""What the tests of stores look for, in both of them."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jax_edm2
from jax_edm2 import CheckpointError

REPO = "somebody/digits"


def same(found, expected):
    found, expected = (flatten_dict(each, sep="/") for each in (found, expected))
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def fails(url, text, **arguments):
    """One line that begins with the URL, and does not show a secret."""
    with pytest.raises(CheckpointError) as error:
        jax_edm2.load(url, **arguments)
    line = str(error.value)
    assert text in line, line
    assert line.startswith(url), line
    assert "\n" not in line
    assert "s3cret" not in line
    return line


def first_time():
    """Of a range: is it the first one with this end?"""
    seen = set()

    def is_new(asked):
        end = asked.partition("-")[2]
        return end not in seen and not seen.add(end)

    return is_new
