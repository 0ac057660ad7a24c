"""`make bench`: both frameworks on this machine, from the snapshot to the picture, in one table with ratios of one run.

    python -m tests.bench.speed                              # XS and S, batch 1 and 4, on the CPU
    python -m tests.bench.speed --nvlabs DIR --jax-edm2 DIR  # beside clones of NVlabs/edm2 and nmboffi/jax-edm2
    python -m tests.bench.speed --networks edm2-img512-s edm2-img512-xxl --batches 1 16 64 --device gpu

Networks have random weights in the published shapes; `digits` is the trained one. PyTorch and JAX run in processes of
their own and take turns; an evaluation is one of the denoiser. `of eager` is the speed beside PyTorch eager in the same
rounds, `first run` has compiling in it, without any cache. GFLOP/s count two for every multiply-accumulate, however few
an algorithm does. `sampling` ways draw whole images with --steps Heun steps. Memory is what the framework's process or
device had at most, over all of its ways.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.precision import PRECISIONS
from jax_edm2.converter.verify.report.plots import Series, log_plot
from jax_edm2.converter.verify.report.text import throughput_lines
from jax_edm2.converter.verify.throughput.job import COMPILED, EAGER, FOLDED, SAMPLING, STEPS, Job
from jax_edm2.converter.verify.throughput.measure import ROUNDS, WAYS, measure
from jax_edm2.converter.verify.throughput.worker import WorkerDied
from tests.bench.worker import JAX_EDM2, NVLABS, command

DIGITS = ROOT / "golden" / "digits.pkl"
STYLE = """<style>text { font: 11px monospace; fill: #667085 } .grid { stroke: #d9dde5 }
polyline { fill: none; stroke-width: 1.5 } .jax { stroke: #1668dc } .torch { stroke: #d9622b }
circle.jax { fill: #1668dc } circle.torch { fill: #d9622b } line.jax, line.torch { stroke-width: 3 }
rect.paper { fill: #fff }</style>"""


def make_snapshot(name: str, folder: Path) -> Path:
    if name == "digits":
        return DIGITS
    path = folder / f"{name}.pkl"
    making = [*processes.module("jax_edm2.torch_ref.snapshot"), name, "-o", str(path)]
    subprocess.run(making, check=True, stdout=subprocess.DEVNULL)
    return path


def convert(snapshot: Path, output: Path) -> float:
    """Seconds of the whole process."""
    started = time.perf_counter()
    converting = [*processes.module("jax_edm2.converter.cli.convert"), str(snapshot), "-o", str(output), "--force"]
    subprocess.run(converting, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def load(checkpoint: Path, device: str) -> dict[str, float]:
    """Seconds of jax_edm2.load, and how far the process's memory rose above what it had before, in bytes."""
    loading = [*processes.module("tests.bench.speed"), "--load", str(checkpoint), "--device", device]
    return json.loads(subprocess.run(loading, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_load(checkpoint: str, device: str) -> dict[str, float]:
    import jax

    import jax_edm2
    from jax_edm2.converter.devices import start

    start(device)
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    _, variables = jax_edm2.load(checkpoint)
    jax.block_until_ready(variables)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def ways(args) -> dict[str, list[str]]:
    found = {framework: [*names] for framework, names in WAYS.items()}
    if args.no_compile:
        found["torch"].remove(COMPILED)
    if args.nvlabs:
        found["torch"].append(NVLABS)
    if args.jax_edm2:
        found["jax"].append(JAX_EDM2)
    if args.steps:
        for framework, name in SAMPLING.items():
            found[framework].append(name)
    return found


def bench(name: str, args, folder: Path) -> list[dict]:
    snapshot, checkpoint = make_snapshot(name, folder), folder / f"{name}.safetensors"
    seconds = convert(snapshot, checkpoint)
    loaded, size = load(checkpoint, args.device), checkpoint.stat().st_size
    print(
        f"\n{name}, {args.precision} on {args.device}: converted in {seconds:.2f} s, "
        f"loaded in {loaded['seconds']:.2f} s with {loaded['bytes'] / size:.2f} times its {size / 1e6:.0f} MB",
        flush=True,
    )
    entries = []
    with read_snapshot(snapshot) as opened:
        config = opened.config
    for batch in args.batches:
        try:
            entry = measure(
                config,
                Job(str(snapshot), batch, args.precision, args.device, args.steps or STEPS),
                lambda stage: None,
                ways=ways(args),
                rounds=args.rounds,
                command=command(args.nvlabs, args.jax_edm2),
            )
        except WorkerDied as error:
            entry = {"batch": batch, "ended": str(error)}
        entries.append({"network": name, "convert": seconds, "load": loaded, **entry})
        print("\n".join(throughput_lines(entry)), flush=True)
    return entries


def plot(entries: list[dict]) -> str:
    """Seconds per image, and memory, of PyTorch eager and of JAX folded, by size and batch: an SVG file's text."""
    entries = [entry for entry in entries if "ways" in entry]
    groups = [(f"{entry['network'].removeprefix('edm2-')} x {entry['batch']}", 1) for entry in entries]

    def seconds(way):
        found = [1 / (entry["ways"][way]["evaluations_per_second"] * entry["batch"]) for entry in entries]
        return [(value, f"{value:.3g} s") for value in found]

    def memory(framework):
        found = [entry["memory"][framework]["peak_bytes"] for entry in entries]
        return [(value, f"{value / 1e9:.2f} GB") for value in found]

    shown = (
        ("seconds per image and evaluation", seconds(FOLDED), seconds(EAGER)),
        ("bytes at most, over all ways", memory("jax"), memory("torch")),
    )
    parts = []
    for i, (label, jax_points, torch_points) in enumerate(shown):
        series = [Series(f"JAX: {label}", "jax", jax_points), Series("PyTorch eager", "torch", torch_points)]
        parts.append(f'<g transform="translate(0 {300 * i})">{log_plot(series, groups, label=label)}</g>')
    body = "".join(parts).replace('viewBox="0 0 1080 300"', 'width="1080" height="300"')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1080 620">'
    return f'{head}{STYLE}<rect class="paper" width="1080" height="620"/>{body}</svg>\n'


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["edm2-img512-xs", "edm2-img512-s"], metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], metavar="N")
    parser.add_argument("--device", choices=["cpu", "gpu", "tpu"], default="cpu")
    parser.add_argument("--precision", choices=[*PRECISIONS], default="float32")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="sample too, with N Heun steps")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--nvlabs", metavar="DIR", help="a clone of github.com/NVlabs/edm2")
    parser.add_argument("--jax-edm2", metavar="DIR", help="a clone of github.com/nmboffi/jax-edm2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time and memory by size and batch (SVG)")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.load:
        print(json.dumps(measure_load(args.load, args.device)))
        return
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            entries += bench(name, args, Path(folder))
            if args.json:
                args.json.write_text(json.dumps(entries, indent=1) + "\n")
            if args.plot:
                args.plot.write_text(plot(entries))


if __name__ == "__main__":
    sys.exit(main())
