"""`make bench` prints its table and draws its plot, on the digits."""

import json
import xml.etree.ElementTree as ElementTree

from tests.bench import speed as bench


def test_bench_of_digits(tmp_path, capsys):
    plot, record = tmp_path / "growth.svg", tmp_path / "bench.json"
    small = ["--networks", "digits", "--batches", "2", "--steps", "2", "--rounds", "1", "--no-compile"]
    bench.main([*small, "--nvlabs", "/nowhere", "--jax-edm2", "/nowhere", "--plot", str(plot), "--json", str(record)])
    printed = capsys.readouterr().out
    for text in (
        "digits, float32 on cpu: converted in",
        "batch 2;",
        "PyTorch sampling",
        "JAX sampling",
        "JAX folded has",
    ):
        assert text in printed
    assert "NVlabs                not available: ModuleNotFoundError" in printed
    assert "jax-edm2              not available: ModuleNotFoundError" in printed
    entries = json.loads(record.read_text())
    assert [entry["batch"] for entry in entries] == [2]
    for entry in entries:
        folded, sampling = (entry["ways"][way] for way in ("JAX folded", "JAX sampling"))
        assert folded["of_eager"] > 0
        assert 0.05 < sampling["evaluations_per_second"] / folded["evaluations_per_second"] < 20  # it counts all three
        assert entry["load"]["bytes"] >= 0
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")
