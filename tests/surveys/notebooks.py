"""`make notebooks`: executes docs/notebooks/ and compares what the cells show with what is stored.

    python -m tests.surveys.notebooks [NAME ...]      # all, or some
    python -m tests.surveys.notebooks --write         # store what they show

Text must be equal, but for times and numbers with an exponent; numbers with a decimal point may differ by a tenth, as
training amplifies how a processor rounds, and pictures by LEVELS on average. A cell that raises, warns or shows nothing
fails.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from jax_edm2.converter.processes import ROOT
from tests.surveys.readme import masked

FOLDER = ROOT / "docs" / "notebooks"
NAMES = "pictures", "guidance", "finetune", "invert", "ema", "sampler"  # as one reads them
DECIMAL = re.compile(r"[-+]?\d+\.\d+")
LEVELS = 4  # of 255


class ThisPython(KernelSpecManager):
    """The kernel is the interpreter that runs this, whatever is installed as python3."""

    def get_kernel_spec(self, kernel_name):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", name=kernel_name)


def execute(path: Path, temporary: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, run in its own folder. Raises: CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(  # whose sockets are files: no ports
        kernel_spec_manager=ThisPython(), transport="ipc", connection_file=str(temporary / f"{path.stem}.json")
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(temporary),  # no profile or history of whoever runs this
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(temporary / "compiled")),
    }
    client = NotebookClient(
        notebook, km=manager, timeout=600, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.owns_km = True  # it ends with the last cell
    return client.execute(env=environment)


def shown(cell) -> tuple[str, list[bytes]]:
    """What a cell shows: all text, and pictures."""
    text, pictures = [], []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            pictures.append(base64.b64decode(data["image/png"]))
        else:
            text.append(output.get("text") or data.get("text/plain", ""))
    return "".join(text), pictures


def apart(one: str, other: str) -> bool:
    """Whether texts differ in more than how numbers are rounded."""
    one, other = masked(one), masked(other)
    if DECIMAL.sub("#", one) != DECIMAL.sub("#", other):
        return True
    pairs = zip(DECIMAL.findall(one), DECIMAL.findall(other), strict=True)
    return any(abs(float(a) - float(b)) > 0.1 * abs(float(b)) + 0.011 for a, b in pairs)


def pixels_apart(one: bytes, other: bytes) -> float:
    """Mean difference of two PNG files in levels of 255; infinite for other sizes."""
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (one, other))
    return float(abs(a - b).mean()) if a.shape == b.shape else np.inf


def problems(stored, found):
    """One line for each thing that is wrong with the cells that were executed."""
    for number, (before, after) in enumerate(zip(stored.cells, found.cells, strict=True), 1):
        if after.cell_type != "code":
            continue
        (text_before, pictures_before), (text, pictures) = shown(before), shown(after)
        if not text.strip() and not pictures:
            yield f"cell {number} shows nothing"
        if any(output.get("name") == "stderr" for output in after.outputs):
            yield f"cell {number} warns: {text}"
        if apart(text_before, text):
            yield f"cell {number} prints\n{text}\nwhere this is stored:\n{text_before}"
        if len(pictures) != len(pictures_before):
            yield f"cell {number} shows {len(pictures)} pictures, and {len(pictures_before)} are stored"
        for one, other in zip(pictures, pictures_before, strict=False):
            if (levels := pixels_apart(one, other)) > LEVELS:
                yield f"cell {number} draws another picture: {levels:.1f} levels apart"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--write", action="store_true", help="store what they show")
    args = parser.parse_args(argv)
    wrong, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.names or NAMES:
            path, start = FOLDER / f"{name}.ipynb", time.monotonic()
            stored = nbformat.read(path, as_version=4)
            try:
                found = execute(path, Path(temporary))
                bad = list(problems(found if args.write else stored, found))
            except CellExecutionError as error:
                found, bad = None, [str(error)]
            wrong += bool(bad)
            seconds = time.monotonic() - start
            print(f"{'BAD' if bad else 'ok '} {name:9} {seconds:5.1f} s", *bad, sep="\n    ", flush=True)
            if args.write and found:
                found.metadata = stored.metadata  # not the versions of what ran it
                nbformat.write(found, path)
    print(f"{time.monotonic() - began:.0f} s in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
