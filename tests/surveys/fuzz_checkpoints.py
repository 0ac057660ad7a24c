"""Mutants of sound checkpoints: none is loaded as something else, and what is refused is refused in one line.

    python -m tests.surveys.fuzz_checkpoints    # 2,000 records, headers and VAE configurations, 300 bits of both

Records, headers and configurations are changed as JSON (tests/support/json_mutants.py); bits are flipped anywhere in a
safetensors file, and in every file of an orbax folder.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import jax_edm2
from jax_edm2.messages import LONGEST
from jax_edm2.record import CHECK, Record, RecordError
from jax_edm2.vae import VAEConfig, VAEError, read_vae_config
from tests.corpora.hostile_checkpoints import parts, sound
from tests.corpora.hostile_vaes import SMALL
from tests.support.json_mutants import mutants

SECONDS = 5  # of CPU time


class Problem(Exception):  # noqa: N818
    """What a mutant should not have done."""


def records(seed: int, count: int, _folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Records by themselves: one that is read can be written and read again, and is the original if its digest is."""
    _, sound_record, _ = parts()
    older = {name: value for name, value in sound_record.items() if name != CHECK}
    for i, (what, text) in enumerate(mutants(older, seed, count)):
        # every other one with the digest that the original has, as damage leaves it
        text = text[:1] + f'"{CHECK}": "{sound_record[CHECK]}", '.encode() + text[1:] if i % 2 else text

        def read(text=text, digested=bool(i % 2)) -> str:
            found = Record.from_json(text.decode("utf-8", "replace"))
            if Record.from_json(found.to_json()) != found:
                raise Problem("cannot be read again")
            same = found == Record.from_json(json.dumps(sound_record))
            if digested and not same:
                raise Problem("is another record with the same digest")
            return "the same" if same else "another"

        yield what, read


def headers(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Headers of safetensors files: the values are those of the original, or the file is refused."""
    header, _, data = parts()
    path = folder / "x.safetensors"
    for what, text in mutants(header, seed, count):

        def read(text=text) -> str:
            path.write_bytes(len(text).to_bytes(8, "little") + text + data)
            return loaded(path)

        yield what, read


def vae_configs(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """VAE configurations: what is read makes a list of tensors, and not a long one."""
    path = folder / "config.json"
    for what, text in mutants({**SMALL, "latent_channels": 4, "use_post_quant_conv": True}, seed, count):

        def read(text=text) -> str:
            path.write_bytes(text)
            found = read_vae_config(path)
            tensors = {**found.encoder_tensors, **found.decoder_tensors}
            if not 0 < len(tensors) < 20_000:
                raise Problem(f"makes {len(tensors)} tensors")
            return "the same" if found == VAEConfig(**{**SMALL, "block_out_channels": (8, 16)}) else "another"

        yield what, read


def flips(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Safetensors files with one bit flipped, half of them in the header."""
    rng = np.random.default_rng(seed)
    original = sound("safetensors").read_bytes()
    end = 8 + int.from_bytes(original[:8], "little")
    path = folder / "x.safetensors"
    for i in range(count):
        position, bit = int(rng.integers(*((end, len(original)) if i % 2 else (0, end)))), int(rng.integers(8))

        def read(position=position, bit=bit) -> str:
            path.write_bytes(_flipped(original, position, bit))
            return loaded(path)

        yield f"bit {bit} of byte {position}", read


def orbax_flips(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Orbax folders with one bit flipped in one of their files."""
    rng = np.random.default_rng(seed)
    original = sound("orbax")
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    for i in range(count):
        name = files[i % len(files)]
        data = (original / name).read_bytes()
        position, bit = int(rng.integers(len(data))), int(rng.integers(8))

        def read(name=name, data=data, position=position, bit=bit) -> str:
            path = folder / "orbax"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(original, path)
            (path / name).write_bytes(_flipped(data, position, bit))
            return loaded(path, "orbax")

        yield f"bit {bit} of byte {position} of {name}", read


def _flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def loaded(path: Path, format: str = "safetensors") -> str:
    """'the same' if a file holds what it should; otherwise it should have been refused."""
    net, variables = jax_edm2.load(path)
    record = jax_edm2.read_record(path)
    sound_net, sound_variables = jax_edm2.load(sound(format))
    if net != sound_net or record != jax_edm2.read_record(sound(format)):
        raise Problem("is loaded as another network")
    if not _equal(variables, sound_variables):
        raise Problem("is loaded with other values")
    return "the same"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return one.dtype == other.dtype and np.asarray(one).tobytes() == np.asarray(other).tobytes()


KINDS = {
    "records": (records, 2000),
    "headers": (headers, 2000),
    "VAE configurations": (vae_configs, 2000),
    "bits in safetensors": (flips, 300),
    "bits in orbax": (orbax_flips, 300),
}


def fuzz(kind: str, count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """What became of `count` mutants of a kind, and everything that should not have."""
    outcomes: Counter = Counter()
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for what, read in KINDS[kind][0](seed, count, Path(folder)):
            started = time.process_time()
            try:
                outcomes[read()] += 1
            except (RecordError, jax_edm2.CheckpointError, VAEError) as error:
                outcomes["refused"] += 1
                if not str(error).isprintable() or len(str(error)) > LONGEST:
                    problems.append(f"{what}: says {error!s:.300}")
            except BaseException as error:
                problems.append(f"{what}: {error!r:.300}")
                if isinstance(error, KeyboardInterrupt):
                    raise
            if (seconds := time.process_time() - started) > SECONDS:
                problems.append(f"{what}: takes {seconds:.1f} s")
    return outcomes, problems


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.surveys.fuzz_checkpoints", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="one kind")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    bad = 0
    for kind in [args.only] if args.only else KINDS:
        outcomes, problems = fuzz(kind, KINDS[kind][1], args.seed)
        for problem in problems:
            print(f"PROBLEM {kind}: {problem}", flush=True)
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"{kind}: {counts}; {len(problems)} problems", flush=True)
        bad += len(problems)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
