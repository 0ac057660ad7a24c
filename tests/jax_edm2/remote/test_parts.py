"""Parts of tensors: of those alone are bytes asked for."""

import jax
import numpy as np
import pytest

from jax_edm2.parts import Parts
from jax_edm2.safetensors_format import CODES, START, Entry, File, _runs
from tests.surveys import shards


def test_runs_are_what_a_part_consists_of(digits_checkpoint):
    """Of parts of every kind, the bytes are those that numpy would take."""
    rng = np.random.default_rng(0)
    whole = digits_checkpoint.read_bytes()
    with File(digits_checkpoint) as found:
        for entry in found.entries.values():
            (array, _), *_ = found.arrays([(entry, entry.whole)], hashed=False)
            for _ in range(3):
                box = tuple(tuple(sorted(map(int, rng.choice(n + 1, 2, replace=False)))) for n in entry.shape)
                bytes_ = b"".join(whole[first : first + count] for first, count in _runs(entry, box))
                expected = array[tuple(slice(*ends) for ends in box)]
                assert bytes_ == expected.tobytes()
                (part, _), *_ = found.arrays([(entry, box)], hashed=False)
                np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("fsdp", [False, True])
def test_processes_read_their_shares_alone(digits_checkpoint, fsdp):
    """Two processes, which compare what they get with the file. Beside their shares they read the header, twice."""
    for each in shards.measured(digits_checkpoint, 2, fsdp):
        assert each["equal"]
        assert each["read"] <= each["share"] + 2 * START
        assert each["requests"] < 100  # one of each tensor, if need be of each of its pieces


def test_parts_in_other_pieces_than_the_files():
    """Splits by other axes than the first: bit for bit, -0.0 and NaN too."""
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    for shape, spec in [((6, 4), (None, "a")), ((3, 2, 5), (None, "a")), ((2, 2, 2), (None, None, "a"))]:
        for code in ("F16", "F32", "BF16"):
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
            values = rng.standard_normal(shape).astype(CODES[code].numpy)
            values.flat[:2] = -0.0, np.nan
            parts = Parts(Entry("w", code, shape, 0, values.nbytes), sharding)
            assert parts.entry.shape == (values.size,)
            found = parts.array({box: values.ravel()[slice(*box[0])] for box in parts.boxes}, None)
            assert (found.sharding, found.dtype) == (sharding, values.dtype)
            assert np.asarray(found).tobytes() == values.tobytes()
