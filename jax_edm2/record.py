"""What a checkpoint says about itself: one JSON record, stored under the metadata key `edm2`. Imports no jax.

A record that can be made can be read again: its fields are bounded when it is made, by the rules that it is read by.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jax_edm2 import __version__, strict_json
from jax_edm2.config import ConfigError, EDM2Config
from jax_edm2.dtypes import DTYPES
from jax_edm2.messages import brief
from jax_edm2.settings import Settings

KEY = "edm2"
FORMAT = 1
CHECK = "record_digest"  # the sha256 of the record without it
LATER = {"code", "not_finite", "fine_tuned_from", "average", "training", "assumed"}  # that records of before lack
OPTIONAL = ("fine_tuned_from", "average", "training", "assumed")  # that are not written where there is nothing in them
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MOST_BYTES = 2**18  # of a record's JSON; real ones have 1,500


class RecordError(ValueError):
    """A metadata record that is missing, damaged, or not one that this version understands or could read again."""


class _FieldError(RecordError):
    """A field that is missing, unknown, or of another kind or size than it may be."""


@dataclass(frozen=True)
class Source:
    """The snapshot that a checkpoint was converted from."""

    name: str  # file name or URL
    sha256: str
    kimg: int | None = None  # training length in thousands of images, where the file name says it
    ema_std: float | None = None  # relative standard deviation of the EMA profile, likewise


@dataclass(frozen=True)
class Ancestor:
    """What the weights were before they were changed."""

    digest: str  # of that checkpoint's tensors
    name: str | None = None  # and, where that had one, its source
    sha256: str | None = None


@dataclass(frozen=True)
class Average:
    """How a post-hoc EMA was made of snapshots: an entry for each in every tuple, in the order that they were added."""

    std: float  # relative standard deviation of its profile
    images: int  # that training had seen by then
    names: tuple[str, ...]  # of the snapshots' files
    digests: tuple[str, ...]  # of their tensors, as their checkpoints would have them
    images_seen: tuple[int, ...]
    stds: tuple[float, ...]
    coefficients: tuple[float, ...]
    condition: float  # of the profiles' correlations: how many times larger rounding errors become

    MOST: ClassVar[int] = 1024  # snapshots


@dataclass(frozen=True)
class Training:
    """Where a training stands, beside its tensors: Adam's settings, and how far it has come."""

    images: int  # that it has seen
    steps: int  # that Adam has taken
    seconds: float  # that it has taken
    learning_rate: float  # of the last step
    betas: tuple[float, ...]
    eps: float
    stds: tuple[float, ...]  # relative standard deviations of the averages


@dataclass(frozen=True)
class Code:
    """The source of the network that the snapshot carries, and whether it is one that this network stands for."""

    sha256: str
    known: str | None = None  # as which; None if it is not a known one
    nearest: str | None = None  # then: the known one it is most like
    differs: tuple[str, ...] = ()  # and: names of the definitions that differ from that

    MOST: ClassVar[int] = 20  # of them
    LONGEST: ClassVar[int] = 200  # characters of each


@dataclass(frozen=True)
class Encoder:
    """How images became network inputs: final = raw * scale + bias, per channel, where a VAE is used."""

    kind: str  # class name in NVlabs' code: StandardRGBEncoder, StabilityVAEEncoder
    scale: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None
    vae: str | None = None  # name of the VAE, as the snapshot has it

    @classmethod
    def of_latents(
        cls,
        raw_mean: Any = (5.81, 3.25, 0.12, -2.15),
        raw_std: Any = (4.17, 4.62, 3.71, 3.28),
        final_mean: Any = 0.0,
        final_std: Any = 0.5,
        vae_name: str = "stabilityai/sd-vae-ft-mse",
    ) -> Self:
        """NVlabs' StabilityVAEEncoder, by its arguments and defaults. Raises: ValueError, TypeError for no numbers."""
        import numpy as np

        mean, std, to_mean, to_std = (
            np.asarray(values, np.float32) for values in (raw_mean, raw_std, final_mean, final_std)
        )
        scale = to_std / std
        bias = to_mean - mean * scale
        return cls("StabilityVAEEncoder", tuple(map(float, scale)), tuple(map(float, bias)), vae_name)


@dataclass(frozen=True)
class Loss:
    """The training noise: ln(sigma) ~ N(P_mean, P_std)."""

    P_mean: float
    P_std: float
    sigma_data: float


@dataclass(frozen=True)
class Sampler:
    """Settings that the network's published results were sampled with.

    edm2-sample takes them from here, where no flag says otherwise.
    """

    num_steps: int = Settings.num_steps
    sigma_min: float = Settings.sigma_min
    sigma_max: float = Settings.sigma_max
    rho: float = Settings.rho
    guidance: float = Settings.guidance  # 1 = no guidance
    guide: str | None = None  # file name of the guiding network, beside the checkpoint


@dataclass(frozen=True)
class Record:
    """Everything about a checkpoint but its tensors."""

    config: EDM2Config
    dtype: str = ""  # of the stored tensors: float16, float32, bfloat16, or several joined by '+'
    digest: str = ""  # tensors_digest of the stored tensors
    not_finite: int | None = None  # how many stored values are NaN or infinite; None where nobody has looked
    source: Source | None = None  # of these very weights
    fine_tuned_from: Ancestor | None = None  # where they are no longer what the source had; else it is not written
    average: Average | None = None  # of a post-hoc EMA; else it is not written
    training: Training | None = None  # of a training state, whose tree holds more than a network; likewise
    assumed: tuple[str, ...] | None = None  # of the configuration and encoder, what no file said; likewise
    code: Code | None = None  # None in records of before it was looked at
    encoder: Encoder | None = None
    loss: Loss | None = None
    sampler: Sampler = Sampler()
    license: str | None = None  # of the weights, where known
    converter: str = __version__
    format: int = FORMAT

    def __post_init__(self):
        """Raises: RecordError."""
        if not isinstance(self.config, EDM2Config):
            raise _FieldError(f"config must be an EDM2Config, not {brief(self.config)}")
        for name, kind in _PARTS.items():
            if name != "config":
                _check_part(name, getattr(self, name), kind)
        for name, rule in _RULES[type(self)].items():
            _check(name, getattr(self, name), rule)
        try:
            _loads(self.to_json())
        except strict_json.JSONError as error:  # a number of the configuration, say
            raise RecordError(f"the record could not be read again: it {error}") from None

    def to_json(self) -> str:
        """Sorted JSON on one line: equal records give equal bytes."""
        fields = dataclasses.asdict(self)
        for name in OPTIONAL:
            if getattr(self, name) is None:
                del fields[name]
        return json.dumps({**fields, CHECK: _digest(fields)}, sort_keys=True)

    def of_changed_weights(self) -> Self:
        """The record for weights that began as these: they are no longer the source's, but fine-tuned from it."""
        if self.fine_tuned_from is not None or not self.digest:
            return dataclasses.replace(self, source=None)
        name, sha256 = (self.source.name, self.source.sha256) if self.source else (None, None)
        return dataclasses.replace(self, source=None, fine_tuned_from=Ancestor(self.digest, name, sha256))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record that `to_json` wrote. Raises: RecordError."""
        what = f"its '{KEY}' metadata is not a record of this format"
        try:
            fields = _loads(text)
            if not isinstance(fields, dict) or "format" not in fields:
                raise RecordError(f"{what}: it has no format")
            if type(fields["format"]) is not int or fields["format"] != FORMAT:
                found = brief(fields["format"])
                raise RecordError(f"it has format {found}; this version reads format {FORMAT}")
            digest = fields.pop(CHECK, None)  # older records have none
            if digest is not None and digest != _digest(fields):
                raise RecordError(f"its '{KEY}' metadata was altered: it does not have its own {CHECK}")
            _check_keys("", fields, cls)
            for name, kind in _PARTS.items():
                if fields.get(name) is not None:
                    fields[name] = _part(name, fields[name], kind)
            if isinstance(fields.get("assumed"), list):
                fields["assumed"] = tuple(fields["assumed"])
            return cls(**fields)
        except (strict_json.JSONError, ConfigError, _FieldError) as error:
            raise RecordError(f"{what}: {error}") from error


def _loads(text: str) -> Any:
    return strict_json.loads(text, most_bytes=MOST_BYTES, most_values=10_000)


_PARTS: dict[str, type] = {
    "config": EDM2Config,
    "source": Source,
    "fine_tuned_from": Ancestor,
    "average": Average,
    "training": Training,
    "code": Code,
    "encoder": Encoder,
    "loss": Loss,
    "sampler": Sampler,
}


# What the fields may be


@dataclass(frozen=True)
class _Text:
    most: int  # characters
    pattern: str = ".*"
    optional: bool = False
    what: str = "a text of at most {most:,} characters"

    def holds(self, value: Any) -> bool:
        if not isinstance(value, str) or len(value) > self.most or not re.fullmatch(self.pattern, value, re.DOTALL):
            return False
        return json.loads(json.dumps(value)) == value  # two halves of a surrogate pair would become one character

    def __str__(self):
        return self.what.format(most=self.most)


@dataclass(frozen=True)
class _Number:
    least: float
    most: float
    integer: bool = False
    optional: bool = False

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        return self.least <= value <= self.most

    def __str__(self):
        return f"{'an integer' if self.integer else 'a number'} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class _Numbers:
    """A tuple of numbers, whose magnitudes are bounded."""

    least: float
    most: float
    optional: bool = True
    longest: int = 1024

    def holds(self, value: Any) -> bool:
        if not isinstance(value, tuple) or len(value) > self.longest:
            return False
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        return numbers and all(self.least <= abs(v) <= self.most for v in value)

    def __str__(self):
        return f"at most {self.longest:,} numbers of magnitude {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class _Texts:
    """A tuple of texts."""

    most: int
    longest: int  # characters
    optional: bool = False

    def holds(self, value: Any) -> bool:
        return isinstance(value, tuple) and len(value) <= self.most and all(map(_Text(self.longest).holds, value))

    def __str__(self):
        return f"at most {self.most} texts of at most {self.longest} characters"


_HASH = _Text(64, "[0-9a-f]{64}", what="64 hexadecimal digits")
_OPTIONAL_HASH = dataclasses.replace(_HASH, optional=True)
_DTYPES = "|".join(DTYPES)
_RULES: dict[type, dict[str, Any]] = {
    Source: {
        "name": _Text(4096),
        "sha256": _HASH,
        "kimg": _Number(0, 10**9, integer=True, optional=True),
        "ema_std": _Number(0, 10, optional=True),
    },
    Ancestor: {
        "digest": _Text(128),
        "name": _Text(4096, optional=True),
        "sha256": _OPTIONAL_HASH,
    },
    Average: {
        "std": _Number(0, 1),
        "images": _Number(1, 10**12, integer=True),
        "names": _Texts(Average.MOST, 255),
        "digests": _Texts(Average.MOST, 71),
        "images_seen": _Numbers(1, 1e12, optional=False),
        "stds": _Numbers(0, 1, optional=False),
        "coefficients": _Numbers(0, 1e12, optional=False),
        "condition": _Number(1, 1e300),
    },
    Training: {
        "images": _Number(0, 10**12, integer=True),
        "steps": _Number(0, 2**31 - 1, integer=True),
        "seconds": _Number(0, 1e12),
        "learning_rate": _Number(0, 1e6),
        "betas": _Numbers(0, 1, optional=False, longest=2),
        "eps": _Number(0, 1),
        "stds": _Numbers(0, 1, optional=False, longest=64),
    },
    Code: {
        "sha256": _HASH,
        "known": _Text(Code.LONGEST, optional=True),
        "nearest": _Text(Code.LONGEST, optional=True),
        "differs": _Texts(Code.MOST, Code.LONGEST),
    },
    Encoder: {
        "kind": _Text(256),
        "scale": _Numbers(1e-6, 1e6),
        "bias": _Numbers(0, 1e6),
        "vae": _Text(256, optional=True),
    },
    Loss: {"P_mean": _Number(-1e6, 1e6), "P_std": _Number(0, 1e6), "sigma_data": _Number(0, 1e6)},
    Sampler: {
        "num_steps": _Number(1, 10_000, integer=True),
        "sigma_min": _Number(0, 1e9),
        "sigma_max": _Number(0, 1e9),
        "rho": _Number(0, 1e6),
        "guidance": _Number(-1e6, 1e6),
        "guide": _Text(256, optional=True),
    },
    Record: {
        "dtype": _Text(64, f"(({_DTYPES})([+]({_DTYPES}))*)?", what="the name of a dtype, or several joined by '+'"),
        "digest": _Text(128),
        "not_finite": _Number(0, 2**53, integer=True, optional=True),
        "assumed": _Texts(64, 256, optional=True),
        "license": _Text(256, optional=True),
        "converter": _Text(64),
        "format": _Number(FORMAT, FORMAT, integer=True),
    },
}


def _check(name: str, value: Any, rule: Any):
    if not (rule.holds(value) or (value is None and rule.optional)):
        found = f"a text of {len(value):,} characters" if isinstance(value, str) and len(value) > 60 else brief(value)
        raise _FieldError(f"{name} must be {rule}{', or nothing' * rule.optional}, not {found}")


def _check_part(name: str, value: Any, kind: type):
    """A part that is made already."""
    if value is None and name != "sampler":
        return
    if not isinstance(value, kind):
        raise _FieldError(f"{name} must be a {kind.__name__}, not {brief(value)}")
    for field, rule in _RULES[kind].items():
        _check(f"{name}.{field}", getattr(value, field), rule)


def _part(name: str, fields: Any, kind: Any) -> Any:
    """A part made of what JSON has of it."""
    if not isinstance(fields, dict):
        raise _FieldError(f"{name} must be an object, not {brief(fields)}")
    _check_keys(f"{name}.", fields, kind)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _check_keys(where: str, fields: dict[str, Any], kind: Any):
    """Every field of a dataclass, and no other."""
    known = {field.name for field in dataclasses.fields(kind)}
    if missing := sorted(known - fields.keys() - (LATER if kind is Record else set())):
        raise _FieldError(f"{where}{missing[0]} is missing")
    if unknown := sorted(fields.keys() - known):
        raise _FieldError(f"{where}{brief(unknown[0])} is not part of a record")


def _digest(fields: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def tensors_digest(lines: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Digest of tensors given as {path: (dtype, shape, sha256 of the little-endian C-ordered bytes)}.

    The sha256 of one line `path dtype shape sha256` per tensor, sorted by path: it does not depend on the file format.
    """
    text = "".join(f"{path} {dtype} {list(shape)} {sha}\n" for path, (dtype, shape, sha) in sorted(lines.items()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
