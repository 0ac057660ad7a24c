"""Everything that waits for a real GPU or TPU, in one run of at most nine minutes, from the source tree.

    python -m tests.surveys.device --device gpu              # writes device.json; nothing need be installed but JAX and
    python -m tests.surveys.device --device cpu --quick      # PyTorch; the rehearsal that CI does
    python -m tests.surveys.device_report device.json        # its tables, for BENCHMARKS.md

edm2-verify in every precision, the goldens, torch's random streams, programs counted and timed, and both frameworks'
speed. Each is a process of its own, and the file is whole after each: what fails or finds no time is named in it.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_edm2 import __version__
from jax_edm2.converter import processes
from jax_edm2.converter.processes import ROOT

SCHEMA = "edm2-device/1"
SECONDS = 520  # of all steps together
DIGITS = str(ROOT / "golden" / "digits.pkl")
XS = "edm2-img512-xs"
PRECISIONS = {
    "cpu": ("float32", "float16", "bfloat16"),
    "gpu": ("float32", "tf32", "default", "float16", "bfloat16"),
    "tpu": ("float32", "high", "default", "bfloat16"),
}


@dataclass(frozen=True)
class Step:
    """A module that is run. output: a file that it writes; None: it prints. good: exit codes that are an answer."""

    kind: str
    name: str
    module: str
    arguments: tuple[str, ...]
    limit: float = 150  # seconds
    output: Path | None = None
    good: tuple[int, ...] = (0,)


def steps(device: str, quick: bool, folder: Path) -> Iterator[Step]:
    """The most important first."""
    verify, precisions = "jax_edm2.converter.cli.verify", PRECISIONS[device]
    for precision in precisions[:1] if quick else precisions:
        less = ("--checks", "parameters,forward,trajectory", "--steps", "4", "--batch", "2") if quick else ()
        arguments = (DIGITS, "--device", device, "--precision", precision, *less, "--json")
        yield Step("verify", f"digits, {precision}", verify, arguments, good=(0, 1, 3))
    yield Step("golden", "goldens", verify, ("--golden", "--device", device, "--json"), good=(0, 1, 3))
    if device != "tpu":
        streams, module = folder / "streams.json", "jax_edm2.golden.torch_streams"
        yield Step("streams", "torch's streams", module, ("--output", str(streams)), output=streams)
    for precision in precisions[:1] if quick else ("bfloat16", "float32"):
        names, batch = ("digits", "2") if quick else (XS, "8")
        programs = ("denoiser",) if quick else ("denoiser", "decoder")
        arguments = ("--networks", names, "--batch", batch, "--precision", precision, "--device", device)
        yield Step("programs", f"programs, {precision}", "tests.bench.programs", (*arguments, "--programs", *programs))
    for precision in precisions[:1] if quick else ("bfloat16", "float32"):
        speed = folder / f"speed-{precision}.json"
        less = ("--networks", "digits", "--batches", "2", "--rounds", "2", "--no-compile") if quick else (
            "--networks", XS, "--batches", "1", "16")  # fmt: skip
        arguments = ("--device", device, "--precision", precision, *less, "--json", str(speed))
        yield Step("speed", f"speed, {precision}", "tests.bench.speed", arguments, 200, speed)
    if not quick:
        snapshot = folder / "xs.pkl"
        yield Step("make", "an XS network", "jax_edm2.torch_ref.snapshot", (XS, "-o", str(snapshot)))
        for precision in precisions:
            arguments = (str(snapshot), "--device", device, "--precision", precision, "--checks", "forward,trajectory")
            more = ("--steps", "8", "--json")
            yield Step("verify", f"XS, {precision}", verify, (*arguments, *more), 250, good=(0, 1, 3))


def run(step: Step, seconds: float) -> dict[str, Any]:
    """Run a step for so long at most, and what came of it."""
    about = {"kind": step.kind, "name": step.name, "command": " ".join([step.module, *step.arguments])}
    if seconds < 5:
        return {**about, "problem": "no time was left"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            [*processes.module(step.module), *step.arguments],
            stdout=printed, stderr=said, start_new_session=True, cwd=ROOT, env=processes.environment(),
        )  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return {**about, "seconds": seconds, "problem": f"took longer than {seconds:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        about["seconds"] = round(time.perf_counter() - started, 1)
        said.seek(0)
        printed.seek(0)
        if process.returncode not in step.good:
            last = next((line for line in reversed(said.read().splitlines()) if line.strip()), "it said nothing")
            return {**about, "problem": f"exit code {process.returncode}: {last.strip()[:300]}"}
        text = step.output.read_text() if step.output is not None else printed.read()
    return {**about, "result": _result(step.kind, text)}


def _result(kind: str, text: str) -> Any:
    """What is kept of a step's output."""
    if kind == "make":
        return None
    if kind == "programs":
        return [json.loads(line) for line in text.splitlines()]
    found = json.loads(text)
    if kind == "golden":
        return {name: value for name, value in found.items() if name != "reports"}
    if kind != "verify":
        return found
    kept = ("verdict", "reasons", "checks", "environment", "switches", "tolerance", "plan", "seconds", "repeat")
    largest: dict[str, Any] = {}
    for measurements in found["measurements"].values():
        for m in measurements:
            if m["error"] is not None and m["error"] > largest.get(m["kind"], {"error": -1})["error"]:
                largest[m["kind"]] = {name: m[name] for name in ("name", "error", "torch_error", "limit")}
    return {**{name: found[name] for name in kept}, "largest": largest}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.device", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=[*PRECISIONS], required=True)
    parser.add_argument("-o", "--output", type=Path, default=Path("device.json"), help="default: device.json")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at most; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="the same steps on the digits, as a rehearsal")
    args = parser.parse_args(argv)
    ends = time.monotonic() + args.seconds
    record: dict[str, Any] = {"schema": SCHEMA, "version": __version__, "device": args.device, "quick": args.quick}
    record |= {"date": time.strftime("%Y-%m-%d"), "steps": []}
    with tempfile.TemporaryDirectory(prefix="edm2-device-") as folder:
        for step in steps(args.device, args.quick, Path(folder)):
            found = run(step, min(step.limit, ends - time.monotonic()))
            record["steps"].append(found)
            whole = args.output.with_name(f".{args.output.name}.part")
            whole.write_text(json.dumps(record, indent=1) + "\n")
            whole.replace(args.output)
            print(f"{step.name}: {found.get('problem', 'done')}, {found.get('seconds', 0):.0f} s", flush=True)
    return 1 if any("problem" in found for found in record["steps"]) else 0


if __name__ == "__main__":
    sys.exit(main())
