"""from_pretrained: from a name to samples, and back to a checkpoint that can be sampled again."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jax_edm2
from jax_edm2.converter.sample import SampleRequest, sample


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tiny_guide_checkpoint):
    return jax_edm2.from_pretrained(tiny_checkpoint, guide=tiny_guide_checkpoint, guidance=1.5)


@pytest.fixture(scope="module")
def drawn(model):
    return model.sample(range(3), classes=[1, 2, 3], num_steps=2)


def test_samples_are_those_of_edm2_sample(model, tiny_checkpoint, tiny_guide_checkpoint, tmp_path):
    found = model.sample([5, 6, 7], classes=3, num_steps=2)
    sample(
        SampleRequest(
            tmp_path, net=str(tiny_checkpoint), gnet=str(tiny_guide_checkpoint), guidance=1.5, num_steps=2,
            seeds=[5, 6, 7], class_idx=3,
        )
    )  # fmt: skip
    for seed, picture in zip(found.seeds, found.to_pil(), strict=True):
        np.testing.assert_array_equal(picture, Image.open(tmp_path / f"{seed:06d}.png"))


def test_classes_of_each_and_a_single_seed(model, drawn):
    assert (drawn.seeds, drawn.classes) == ([0, 1, 2], [1, 2, 3])
    assert drawn.pictures.shape == drawn.latents.shape == (3, 1, 8, 8)
    one = model.sample(1, classes=2, num_steps=2)
    np.testing.assert_array_equal(one.pictures[0], drawn.pictures[1])
    with pytest.raises(ValueError, match="latents are no pictures"):
        model.sample(1, num_steps=2, latents=True).to_pil()


def test_a_key_is_seeds_of_jax(model):
    first, again = (model.sample(jax.random.key(3), classes=[4, 5], num_steps=2) for _ in range(2))
    assert len(first.seeds) == 2
    np.testing.assert_array_equal(first.pictures, again.pictures)
    assert len(model.sample(jax.random.key(3), num=3, num_steps=2).seeds) == 3
    np.testing.assert_array_equal(model.sample(first.seeds, [4, 5], rng="jax", num_steps=2).pictures, first.pictures)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seeds": [1, 2], "classes": [1]}, "2 seeds take as many classes, not 1"),
        ({"seeds": 1, "classes": [10]}, "class 10 is out of range: the network has classes 0 to 9"),
        ({"seeds": 1, "num": 2}, "num is for a key"),
        ({"seeds": []}, "there are no seeds"),
        ({"seeds": 1, "num_steps": 0}, "num_steps must be at least 1, not 0"),
        ({"seeds": 1, "rng": "numpy"}, "rng must be one of torch-cuda, torch-cpu, jax, not 'numpy'"),
    ],
)
def test_samples_that_make_no_sense(model, arguments, text):
    with pytest.raises(ValueError, match=r"must|is|take|are") as error:
        model.sample(**arguments)
    assert text in str(error.value)


def test_denoise_is_the_network_alone(model):
    x, labels = jax.random.normal(jax.random.key(0), (2, 1, 8, 8)), jax.nn.one_hot(jnp.array([1, 2]), 10)
    alone = jax.jit(model.net.apply)(model.variables, x, 2.0, labels)
    np.testing.assert_array_equal(model.denoise(x, 2.0, labels), alone)
    with pytest.raises(ValueError, match="sigma must be a noise level > 0, not 0"):
        model.denoise(x, 0.0, labels)
    with pytest.raises(ValueError, match=r"a single one is x\[None\]"):
        model.denoise(x[0], 2.0)


def test_a_snapshot_gives_what_its_checkpoint_gives(tiny_pkl, tiny_checkpoint):
    ours, theirs = jax_edm2.from_pretrained(tiny_pkl), jax_edm2.from_pretrained(tiny_checkpoint)
    assert ours.record == theirs.record
    assert ours.record.source.sha256 == hashlib.sha256(tiny_pkl.read_bytes()).hexdigest()
    for a, b in zip(*map(jax.tree.leaves, (ours.variables, theirs.variables)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    wide = jax_edm2.from_pretrained(tiny_pkl, dtype=jnp.float32, compute_dtype=jnp.bfloat16, sharding=jax.devices()[1])
    leaf = jax.tree.leaves(wide.variables)[0]
    assert (leaf.dtype, leaf.devices(), wide.net.dtype) == (jnp.float32, {jax.devices()[1]}, jnp.bfloat16)


def test_saved_with_its_guide_and_sampled_again(model, drawn, tmp_path):
    record = model.replace(settings=jax_edm2.Settings(num_steps=2, guidance=1.5)).save(tmp_path / "mine.safetensors")
    assert record.source == model.record.source
    assert record.fine_tuned_from is None
    again = jax_edm2.from_pretrained(tmp_path / "mine.safetensors")
    assert again.settings == jax_edm2.Settings(num_steps=2, guidance=1.5)
    np.testing.assert_array_equal(again.sample(range(3), classes=[1, 2, 3]).pictures, drawn.pictures)
    again.save(tmp_path / "mine.safetensors", overwrite=True)
    with pytest.raises(FileExistsError):
        again.save(tmp_path / "mine.safetensors")


def test_changed_weights_claim_no_source(model, tmp_path):
    source = model.record.source
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), model.variables)
    assert jax_edm2.save(tmp_path / "a.safetensors", model.net, wide, record=model.record).source == source
    changed = model.replace(variables=jax.tree.map(lambda w: w * jnp.float32(1.01), wide))
    record = changed.save(tmp_path / "b.safetensors")
    assert record.source is None
    ancestor = record.fine_tuned_from
    assert (ancestor.digest, ancestor.name, ancestor.sha256) == (model.record.digest, source.name, source.sha256)
    assert jax_edm2.read_record(tmp_path / "b.safetensors") == record
    assert (record.encoder, record.code, record.loss) == (model.record.encoder, model.record.code, model.record.loss)

    once_more = jax_edm2.from_pretrained(tmp_path / "b.safetensors")
    twice = once_more.replace(variables=jax.tree.map(lambda w: w * jnp.float32(1.01), once_more.variables))
    assert twice.save(tmp_path / "c.safetensors").fine_tuned_from == ancestor


def test_what_cannot_be_had(tmp_path):
    with pytest.raises(jax_edm2.ConverterError, match="nowhere: there is no such file or folder, and there is no"):
        jax_edm2.from_pretrained("nowhere")
    with pytest.raises(jax_edm2.ConverterError, match="is not in the cache"):
        jax_edm2.from_pretrained("edm2-img512-xs", offline=True, cache_dir=tmp_path)
    with pytest.raises(jax_edm2.ConverterError, match="a guide takes guidance="):
        jax_edm2.from_pretrained("edm2-img512-xs", guide="other.safetensors")
