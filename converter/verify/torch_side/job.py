"""What the oracle is asked for: a record that needs no torch to be written."""

import dataclasses
import json
from dataclasses import dataclass

from ..cases import HELD, Plan


@dataclass(frozen=True)
class Job:
    snapshot: str
    output: str
    plan: Plan
    reference: str = "torch_ref"
    device: str = "cpu"  # of PyTorch in the precision that is judged; the truth is computed on the CPU
    held: float = HELD
    weights: str | None = None  # which network, where `snapshot` is a training state
    config_from: str | None = None

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        return cls(plan=Plan.from_json(fields.pop("plan")), **fields)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))
