"""Checkpoints into a repository of the Hugging Face hub: with their records, and a model card that is made of these."""

import dataclasses
import json
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_edm2 import __version__
from jax_edm2.checkpoint import read_record
from jax_edm2.config import expected_tree
from jax_edm2.record import Record
from jax_edm2.remote import exists, hub
from jax_edm2.strict_json import JSONError, loads

from .conversion import Conversion, ConversionRequest, fetch_and_convert
from .errors import ConverterError, UsageError
from .progress import Progress, Warn, silent
from .verify.report.markup import markdown, markdown_code

LICENSE = "CC BY-NC-SA 4.0"
LICENSE_URL = "https://creativecommons.org/licenses/by-nc-sa/4.0/"
CARD = "README.md"
MOST_REPORT = 64 * 2**20  # bytes of a report.json, which has pictures in it


class PublishError(ConverterError):
    """What cannot be published as asked."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What edm2-verify has found of a network. sha256: of its snapshot. lines: a sentence for every check."""

    sha256: str | None
    headline: str
    lines: tuple[str, ...]


def refuse_unless(accepted: bool):
    """Raises: UsageError."""
    if not accepted:
        raise UsageError(
            f"NVIDIA's weights, and what is made of them, are licensed under {LICENSE} ({LICENSE_URL}): with "
            "attribution, for no commercial purpose, and passed on under the same terms; --accept-license says that "
            "you publish them so"
        )


def convert_and_publish(
    request: ConversionRequest,
    url: str,
    *,
    accept_license: bool,
    verified: Path | None = None,
    warn: Warn = warnings.warn,
    progress: Progress = silent,
) -> tuple[Conversion, str]:
    """Do what is requested, and publish what comes of it. Without an output nothing stays on this disk.

    verified: the report.json of edm2-verify. request.force: files in the repository are replaced, too.
    Returns what became of the request, and the commit's URL. Raises: as `fetch_and_convert` and `publish`.
    """
    refuse_unless(accept_license)
    hub.check_repository(url)
    if request.dry_run or isinstance(request.output, str) or request.format not in (None, "safetensors"):
        raise UsageError("--push-to is for safetensors checkpoints, which are written on this disk first")
    about = None if verified is None else read_report(verified)
    with tempfile.TemporaryDirectory(prefix="edm2-") as folder:
        here = dataclasses.replace(request, output=request.output or Path(folder), format="safetensors")
        conversion = fetch_and_convert(here, warn=warn, progress=progress)
        if conversion.network.metadata.get("training") is not None:
            raise UsageError("--push-to is for one network: choose one of the training state's with --weights")
        both = [each for each in (conversion.network, conversion.guide) if each is not None]
        paths = [Path(each.output) for each in both if each.output is not None]
        commit = publish(url, paths, accept_license=accept_license, verified=about, overwrite=request.force)
    if request.output is None:
        both = [dataclasses.replace(each, output=f"{url}/{path.name}") for each, path in zip(both, paths, strict=True)]
    return Conversion(*both), commit


def publish(
    url: str,
    checkpoints: Sequence[Path],
    *,
    accept_license: bool,
    verified: Verified | None = None,
    overwrite: bool = False,
) -> str:
    """Put safetensors files into the repository hf://owner/repo, in one commit with records and card: its URL.

    checkpoints: a network's, and perhaps its guide's. A repository that is not there is made, and is private at first.
    accept_license: what the weights are licensed under is known, and they are published so.
    Raises: UsageError, PublishError, CheckpointError for what the hub refuses; FileExistsError unless `overwrite`.
    """
    refuse_unless(accept_license)
    records = {path.name: read_record(path) for path in checkpoints}
    main = next(iter(records.values()))
    sha256 = main.source.sha256 if main.source else None
    if verified is not None and verified.sha256 != sha256:
        raise PublishError(f"{checkpoints[0]}: was made of another snapshot than the report is about; verify it again")
    files: dict[str, Path | bytes] = {path.name: path for path in checkpoints}
    for name, record in records.items():
        text = json.dumps(json.loads(record.to_json()), indent=2, sort_keys=True)
        files[f"{Path(name).stem}.json"] = f"{text}\n".encode()
    files[CARD] = card(url, records, verified).encode()
    hub.make_repository(url)
    if not overwrite and (there := [name for name in files if exists(f"{url}/{name}")]):
        raise FileExistsError(f"{url}/{there[0]} exists")
    return hub.commit(url, files, f"{checkpoints[0].name}, by edm2-jax {__version__}")


def card(url: str, records: dict[str, Record], verified: Verified | None = None) -> str:
    """The model card, of which nothing that a record holds is markup. records: by file name, the network's first."""
    name = next(iter(records))
    parts = [
        "---\nlicense: cc-by-nc-sa-4.0\nlibrary_name: edm2-jax\ntags: [edm2, diffusion, jax, flax]\n---",
        f"# {markdown(Path(name).stem)}",
        f"An [EDM2](https://arxiv.org/abs/2312.02696) diffusion network for JAX, written by edm2-jax {__version__}. "
        "What follows is from its record, which is in the file, too.",
        f'```python\nimport jax_edm2\n\nmodel = jax_edm2.from_pretrained("{url}/{name}")\n'
        "samples = model.sample(range(4))\n```",
    ]
    for file, each in records.items():
        parts += [f"## {markdown(file)}", "\n".join(["| | |", "|---|---|", *_rows(each)]), _configuration(each)]
    parts += ["## Verification", _verification(verified)]
    parts += [
        "## License",
        f"[{LICENSE}]({LICENSE_URL}): NVIDIA's weights, and what is made of them, may be used and passed on with "
        "attribution, for no commercial purpose, and under the same terms. Converting them does not change that.",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(record: Record):
    tree = expected_tree(record.config)
    count = sum(math.prod(shape) for path, shape in tree.items() if path.startswith("params/"))
    yield f"| parameters | {count:,} |"
    yield f"| stored as | {markdown(record.dtype)} |"
    yield f"| digest of the tensors | {markdown_code(record.digest)} |"
    if record.not_finite:
        yield f"| values that are NaN or infinite | {record.not_finite:,} |"
    if record.source is not None:
        yield f"| converted from | {markdown_code(record.source.name)} |"
        yield f"| sha256 of that | {markdown_code(record.source.sha256)} |"
    if record.fine_tuned_from is not None:
        yield f"| fine-tuned from | {markdown_code(record.fine_tuned_from.name or record.fine_tuned_from.digest)} |"
    if record.average is not None:
        yield f"| post-hoc EMA | {record.average.std:g}, of {len(record.average.names)} snapshots |"
    if record.encoder is not None:
        vae = f", {markdown(record.encoder.vae)}" if record.encoder.vae else ""
        yield f"| encoder | {markdown(record.encoder.kind)}{vae} |"
    if record.sampler.guide is not None:
        yield f"| guided by | {markdown_code(record.sampler.guide)}, {record.sampler.guidance:g} |"


def _configuration(record: Record) -> str:
    return f"```json\n{json.dumps(record.config.to_json(), sort_keys=True)}\n```"


def _verification(verified: Verified | None) -> str:
    if verified is None:
        return (
            "Tensors are held to their digest whenever they are loaded. Nobody has said here what `edm2-verify`, which "
            "compares JAX with PyTorch operation by operation, finds."
        )
    return "\n".join([f"edm2-verify: {markdown(verified.headline)}.", "", *(f"- {line}" for line in verified.lines)])


def read_report(path: Path) -> Verified:
    """What a report.json of edm2-verify says. Raises: PublishError, OSError."""
    try:
        with open(path, "rb") as file:
            report = loads(file.read(MOST_REPORT + 1), most_bytes=MOST_REPORT, most_values=10**6)
        if report["schema"] != "edm2-verify/1" or report["verdict"] == "measured":
            raise PublishError(f"{path}: is no report of a verification by edm2-verify")
        lines = tuple(_line(name, found) for name, found in report["checks"].items())
        return Verified(report["snapshot"]["sha256"], str(report["headline"]), lines)
    except (JSONError, KeyError, TypeError, AttributeError, ValueError):
        raise PublishError(f"{path}: is no report of edm2-verify; --report FOLDER writes it: report.json") from None


def _line(name: str, found: dict[str, Any]) -> str:
    worst = found["worst"]
    beside = f"; worst: {worst['error']:.1e} of {worst['limit']:.1e} allowed" if worst and worst.get("limit") else ""
    return markdown(f"{name}: {found['count'] - found['failed']:,} of {found['count']:,} agree{beside}")
