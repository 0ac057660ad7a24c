"""What each process reads of a checkpoint in a store that it loads its parts of, beside what these parts are.

python -m tests.surveys.shards [CHECKPOINT] [--processes 4]: so many processes of JAX, each with a device of its own,
load a network (by default of S size, with random weights), split by the first axis of each tensor that divides, from a
stand-in of the hub on loopback, which counts what it sends to each. They compare what they get with the file. With
--fsdp tensors are split as `fully_sharded` does, by their longest axes: each process reads pieces of as many bytes, and
they exchange them.
"""

import argparse
import collections
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jax_edm2.converter.processes import ROOT
from tests.support.hub import Hub

REPO, NAME = "somebody/network", "network.safetensors"
MOST = 1.05  # of its share


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.process:
        return child(given.checkpoint, *map(int, given.process.split(",")), fsdp=given.fsdp)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or made(Path(folder))
        return survey(checkpoint, given.processes, given.fsdp)


def made(folder: Path) -> Path:
    """A checkpoint of S size."""
    snapshot, checkpoint = folder / "s.pkl", folder / "s.safetensors"
    for command in (
        ["jax_edm2.torch_ref.snapshot", "edm2-img512-s", "-o", snapshot],
        ["jax_edm2.converter.cli.convert", snapshot, "-o", checkpoint],
    ):
        subprocess.run([sys.executable, "-m", *map(str, command)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return checkpoint


def survey(checkpoint: Path, count: int, fsdp: bool) -> int:
    print(f"{checkpoint.name}: {checkpoint.stat().st_size / 1e6:.1f} MB, {count} processes")
    print(f"{'process':>7}{'its share, MB':>15}{'read, MB':>10}{'of it':>8}{'requests':>10}{'seconds':>9}")
    good = True
    for number, each in enumerate(measured(checkpoint, count, fsdp)):
        ratio = each["read"] / each["share"]
        good = good and each["equal"] and ratio <= MOST
        row = f"{each['share'] / 1e6:>15.1f}{each['read'] / 1e6:>10.1f}{ratio:>8.4f}"
        print(f"{number:>7}{row}{each['requests']:>10,}{each['seconds']:>9.1f}")
    print("all values equal, no more than needed" if good else "NOT as it should be")
    return 0 if good else 1


def measured(checkpoint: Path, count: int, fsdp: bool) -> list[dict]:
    """Of each process: share and read (bytes), requests, seconds, and equal: did it get what is in the file?"""
    sent, requests = collections.Counter(), collections.Counter()

    def note(handler, _number):
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"]).groups())
        who = handler.headers["Authorization"]
        sent[who] += last - first + 1
        requests[who] += 1
        return False

    with Hub() as hub:
        hub.commit(REPO, {NAME: checkpoint.read_bytes()})
        hub.answer = note
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        children = []
        for number in range(count):
            environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": f"hf_{number}"}
            environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
            command = [
                sys.executable,
                "-m",
                "tests.surveys.shards",
                checkpoint,
                "--process",
                f"{number},{count},{port}",
            ]
            command += ["--fsdp"] * fsdp
            children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        found = [json.loads(each.communicate()[0].splitlines()[-1]) for each in children]
    who = [f"Bearer hf_{number}" for number in range(count)]
    return [{**each, "read": sent[name], "requests": requests[name]} for each, name in zip(found, who, strict=True)]


def child(checkpoint: Path, number: int, count: int, port: int, *, fsdp: bool) -> int:
    """One of the processes: prints a line of JSON."""
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    import numpy as np
    from flax.traverse_util import flatten_dict, unflatten_dict

    import jax_edm2
    from jax_edm2.safetensors_format import File
    from jax_edm2.training import data_mesh, fully_sharded

    url = f"hf://{REPO}/{NAME}"
    shapes = jax_edm2.expected_tree(jax_edm2.read_record(url).config)
    tree = unflatten_dict({path: jax.ShapeDtypeStruct(shape, np.float16) for path, shape in shapes.items()}, sep="/")
    mesh = data_mesh()

    def by_rows(leaf):
        axis = next((axis for axis, length in enumerate(leaf.shape) if length % count == 0), None)
        spec = [] if axis is None else [*[None] * axis, *mesh.axis_names]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    sharding = fully_sharded(tree, mesh) if fsdp else jax.tree.map(by_rows, tree)
    begun = time.monotonic()
    _, variables = jax_edm2.load(url, sharding=sharding)
    seconds, share, equal = time.monotonic() - begun, 0, True
    _, of_disk = jax_edm2.load(checkpoint, sharding=sharding)  # each process reads all of it
    others = flatten_dict(of_disk, sep="/")
    with File(checkpoint) as file:
        for path, leaf in flatten_dict(variables, sep="/").items():
            whole = file.array(path)
            for shard, other in zip(leaf.addressable_shards, others[path].addressable_shards, strict=True):
                share += shard.data.nbytes
                found = {np.asarray(each.data).tobytes() for each in (shard, other)}
                equal = equal and found == {whole[shard.index].tobytes()}
    print(json.dumps({"share": share, "seconds": seconds, "equal": equal}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
