"""The committed snapshot is a trained network, and what it draws is digits."""

import pytest
import torch

from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.golden import demo
from jax_edm2.golden.digits import CONFIG, LOSS, DigitClassifier, draw, load_network, train
from jax_edm2.torch_ref.sampling import heun, noise_levels


def test_the_committed_snapshot_is_what_the_script_trains(digits_pkl):
    assert digits_pkl.stat().st_size < 3e6
    with read_snapshot(digits_pkl) as snapshot:
        assert snapshot.init_kwargs == CONFIG
        assert {"P_mean": snapshot.loss.P_mean, "P_std": snapshot.loss.P_std} == LOSS


def test_a_classifier_recognises_its_samples(digits_pkl):
    classifier = DigitClassifier()
    images, labels = draw(load_network(digits_pkl), per_class=20)
    assert classifier.test_accuracy() > 0.98  # measured: 99.1 %
    assert classifier.accuracy(images, labels) >= 0.95  # measured: 98.7 % of 1,000


def test_training_runs_and_is_seeded(tmp_path, monkeypatch):
    monkeypatch.setattr("jax_edm2.golden.digits.BATCH", 8)
    for folder in ("a", "b"):
        train(tmp_path / folder, batches=2)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["network-snapshot-0000000-0.050.pkl", "network-snapshot-0000000-0.100.pkl"]
    states = [load_network(tmp_path / folder / names[1]).state_dict() for folder in ("a", "b")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_demo(tmp_path, capfd):
    assert demo.main(["--outdir", str(tmp_path)]) == 0
    output = capfd.readouterr().out
    assert "PyTorch and JAX agree." in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.png", "digits.safetensors"]


def test_demo_notices_a_wrong_network(digits_pkl, capsys):
    """The comparison can fail: a gain changed by one part in a thousand is seen."""
    reference = load_network(digits_pkl)
    wrong = load_network(digits_pkl)
    with torch.no_grad():
        wrong.unet.out_gain *= 1.001

    def denoise(*arguments):
        arguments = [None if value is None else torch.from_numpy(value) for value in arguments]
        with torch.no_grad():
            return [value.numpy() for value in wrong(*arguments, return_logvar=True)]

    assert not demo.compare(reference, denoise)


@pytest.mark.parametrize("steps", [4])
def test_samples_are_finite(digits_pkl, steps):
    net = load_network(digits_pkl)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert heun(net, noise, noise_levels(steps)).isfinite().all()
