"""Parts of tensors: of those alone are bytes asked for."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jax_edm2
from jax_edm2.safetensors_format import File, _runs


def test_runs_are_what_a_part_consists_of(digits_checkpoint):
    """Of parts of every kind, the bytes are those that numpy would take."""
    rng = np.random.default_rng(0)
    whole = digits_checkpoint.read_bytes()
    with File(digits_checkpoint) as found:
        for name, entry in found.entries.items():
            (array, _), *_ = found.arrays([(name, found.whole(name))], hashed=False)
            for _ in range(3):
                box = tuple(tuple(sorted(map(int, rng.choice(n + 1, 2, replace=False)))) for n in entry.shape)
                bytes_ = b"".join(whole[first : first + count] for first, count in _runs(entry, box))
                expected = array[tuple(slice(*ends) for ends in box)]
                assert bytes_ == expected.tobytes()
                (part, _), *_ = found.arrays([(name, box)], hashed=False)
                np.testing.assert_array_equal(part, expected)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """A sharding as one of several processes sees it: it has the first device alone."""

    sharding: jax.sharding.NamedSharding
    is_fully_addressable = False

    def addressable_devices_indices_map(self, shape):
        device, index = next(iter(self.sharding.devices_indices_map(shape).items()))
        return {device: index}


@pytest.mark.parametrize("axis", [0, 1])
def test_a_process_reads_its_parts_alone(s3, file, digits, monkeypatch, axis):
    url = s3.put("digits.safetensors", file)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * axis, "data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    leaves = flatten_dict(digits[1], sep="/")

    def is_split(leaf):  # the linear ones alone have few rows: each is a request
        return leaf.ndim > axis and (axis == 0 or leaf.ndim == 2) and leaf.shape[axis] % 2 == 0

    where = {path: OneOf(split if is_split(leaf) else everywhere) for path, leaf in leaves.items()}
    monkeypatch.setattr("jax_edm2.placement.placement", lambda sharding, paths: where)
    # The other process's device is one of ours: nothing is put there.
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, callback: callback(
            next(iter(sharding.addressable_devices_indices_map(shape).values()))
        ),
    )
    monkeypatch.setattr(jax, "device_put", lambda array, sharding: array)
    _, variables = jax_edm2.load(url, sharding=split)
    share = 0
    for path, found in flatten_dict(variables, sep="/").items():
        index = next(iter(where[path].addressable_devices_indices_map(leaves[path].shape).values()))
        np.testing.assert_array_equal(found, leaves[path][index])
        share += found.nbytes
    assert axis or share < 0.6 * len(file)
    assert s3.sent <= share + 2**16
