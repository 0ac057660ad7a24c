"""What a worker is asked to compile: a record that needs no jax to be written."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from jax_edm2.config import EDM2Config

DENOISER, SAMPLER, DECODER, TRAINING = "denoiser", "sampler", "decoder", "training"
PROGRAMS = (DENOISER, SAMPLER, DECODER, TRAINING)


@dataclass(frozen=True)
class Job:
    """batch: images at once on all chips together. steps: of the sampler.

    Of the training: parts that a batch is computed in, and remat and fsdp as edm2-train has them.
    """

    target: str
    config: EDM2Config
    batch: int
    precision: str
    programs: tuple[str, ...] = (DENOISER,)
    steps: int = 32
    parts: int = 1
    remat: bool = False
    fsdp: bool = False

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "config": self.config.to_json()})

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields: dict[str, Any] = json.loads(text)
        fields["programs"] = tuple(fields["programs"])
        return cls(**{**fields, "config": EDM2Config(**fields["config"])})
