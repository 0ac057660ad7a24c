"""What a checkpoint says about itself: one JSON record, stored under the metadata key `edm2`. Imports no jax."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from jax_edm2 import __version__
from jax_edm2.config import ConfigError, EDM2Config

KEY = "edm2"
FORMAT = 1


class RecordError(ValueError):
    """A metadata record that is missing, or not one that this version understands."""


@dataclass(frozen=True)
class Source:
    """The snapshot that a checkpoint was converted from."""

    name: str  # file name or URL
    sha256: str
    kimg: int | None = None  # training length in thousands of images, where the file name says it
    ema_std: float | None = None  # relative standard deviation of the EMA profile, likewise


@dataclass(frozen=True)
class Code:
    """The source of the network that the snapshot carries, and whether it is one that this network stands for."""

    sha256: str
    known: str | None = None  # as which; None if it is not a known one
    nearest: str | None = None  # then: the known one it is most like
    differs: tuple[str, ...] = ()  # and: names of the definitions that differ from that

    MOST: ClassVar[int] = 20  # of them
    LONGEST: ClassVar[int] = 200  # characters of each

    def __post_init__(self):
        texts = [text for text in (self.sha256, self.known, self.nearest) if text is not None]
        if not isinstance(self.differs, tuple) or len(self.differs) > self.MOST:
            raise RecordError(f"its entry 'code' has no list of at most {self.MOST} differences")
        if not all(isinstance(text, str) and len(text) <= self.LONGEST for text in (*texts, *self.differs)):
            raise RecordError(f"its entry 'code' has a value that is no text of at most {self.LONGEST} characters")


@dataclass(frozen=True)
class Encoder:
    """How images became network inputs: final = raw * scale + bias, per channel, where a VAE is used."""

    kind: str  # class name in NVlabs' code: StandardRGBEncoder, StabilityVAEEncoder
    scale: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None
    vae: str | None = None  # name of the VAE, as the snapshot has it


@dataclass(frozen=True)
class Loss:
    """The training noise: ln(sigma) ~ N(P_mean, P_std)."""

    P_mean: float
    P_std: float
    sigma_data: float


@dataclass(frozen=True)
class Sampler:
    """Settings that the network's published results were sampled with."""

    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    guidance: float = 1.0  # 1 = no guidance
    guide: str | None = None  # file name of the guiding network


@dataclass(frozen=True)
class Record:
    """Everything about a checkpoint but its tensors."""

    config: EDM2Config
    dtype: str = ""  # of the stored tensors: float16, float32, bfloat16, or several joined by '+'
    digest: str = ""  # tensors_digest of the stored tensors
    source: Source | None = None
    code: Code | None = None  # None in records of before it was looked at
    encoder: Encoder | None = None
    loss: Loss | None = None
    sampler: Sampler = Sampler()
    license: str | None = None  # of the weights, where known
    converter: str = __version__
    format: int = FORMAT

    def to_json(self) -> str:
        """Sorted JSON on one line: equal records give equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record that `to_json` wrote. Raises: RecordError."""
        try:
            fields = json.loads(text)
            if fields["format"] != FORMAT:
                raise RecordError(f"it has format {fields['format']!r}; this version reads format {FORMAT}")
            fields["config"] = EDM2Config(**fields["config"])
            for name, kind in _PARTS.items():
                if fields.get(name) is not None:
                    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields[name].items()}
                    fields[name] = kind(**values)
            return cls(**fields)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise RecordError(f"its '{KEY}' metadata is not a record of this format: {error}") from error


_PARTS: dict[str, type] = {"source": Source, "code": Code, "encoder": Encoder, "loss": Loss, "sampler": Sampler}


def tensors_digest(lines: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Digest of tensors given as {path: (dtype, shape, sha256 of the little-endian C-ordered bytes)}.

    The sha256 of one line `path dtype shape sha256` per tensor, sorted by path: it does not depend on the file format.
    """
    text = "".join(f"{path} {dtype} {list(shape)} {sha}\n" for path, (dtype, shape, sha) in sorted(lines.items()))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
