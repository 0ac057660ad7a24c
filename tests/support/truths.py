"""Truth files made up for tests: of any size, without PyTorch, right in form and full of noise."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jax_edm2.config import EDM2Config
from jax_edm2.converter.verify import shapes
from jax_edm2.converter.verify.archive import npy_header
from jax_edm2.converter.verify.cases import Plan, Training
from jax_edm2.converter.verify.facts import as_json
from jax_edm2.converter.verify.taps import EMBEDDING, block_scope
from jax_edm2.converter.verify.truth import MEMBER, SCHEMA

SMALL = EDM2Config(
    img_resolution=4, img_channels=1, label_dim=3, model_channels=4, channel_mult=(1, 2), num_blocks=0,
    attn_resolutions=(2,), channels_per_head=4, logvar_channels=4,
)  # fmt: skip
PLAN = Plan((*Plan().checks, "training"), sigmas=(0.3, 20.0), batch=2, steps=2, updates=2)
NOTHING = "0" * 64


def _cases(plan: Plan) -> list[str]:
    return [f"seed{seed}" for seed in plan.seeds] if "forward" in plan.checks else []


def training_of(plan: Plan) -> Training | None:
    return Training(images=4, steps=1, eps=1e-6) if "training" in plan.checks else None


def arrays(config: EDM2Config, plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of everything that the file of a plan holds."""
    found = {}
    for case in _cases(plan):
        taps = shapes.tap_shapes(config, plan.batch)
        taps |= {f"{tap}.amplified": shape for tap, shape in taps.items() if tap.endswith("/clip")}
        found |= {f"{case}/{tap}": shape for tap, shape in (taps | shapes.of_a_case(config, plan.batch)).items()}
        alone = shapes.unlabelled_shapes(config, plan.batch) if config.label_dim else {}
        found |= {f"{case} unlabelled/{tap}": shape for tap, shape in alone.items()}
    rest = {
        key: (dtype, shape) for key, dtype, shape in shapes.of_the_rest(config, plan, training_of(plan), reduced=False)
    }
    return {key: (shapes.DOUBLE, shape) for key, shape in found.items()} | rest


def facts(config: EDM2Config, plan: Plan) -> dict[str, Any]:
    """As the oracle might have them."""
    pair = {"error": 1.2345678901234567e-07, "condition": 1.2345678901234567}
    of_taps = {tap: {**pair, "dtype": "float32"} for tap in shapes.tap_shapes(config, 1)}
    embedding = {tap: error for tap, error in of_taps.items() if tap.startswith(f"{EMBEDDING}/")}
    cases = _cases(plan)
    errors: dict[str, Any] = {
        case: {"accumulated": of_taps, "isolated": of_taps, "outputs": {"denoised": pair, "logvar": pair}}
        for case in cases
    }
    errors |= {f"{case} unlabelled": {"accumulated": embedding} for case in cases if config.label_dim}
    rest = [key for key, _, _ in shapes.of_the_rest(config, plan, training_of(plan), reduced=False)]
    keys = {"training": [key for key in rest if key.startswith(f"{shapes.TRAINING}/")]}
    keys["gradients"] = [key for key in rest if key != "trajectory" and key not in keys["training"]]
    errors |= {check: dict.fromkeys(found, pair) for check, found in keys.items() if check in plan.checks}
    errors |= {"trajectory": [pair["error"]] * (plan.steps + 1)} if "trajectory" in plan.checks else {}
    blocks = [block_scope(spec) for spec in config.architecture.encoder + config.architecture.decoder]
    return {
        "plan": {name: list(v) if isinstance(v, tuple) else v for name, v in vars(plan).items()},
        "config": config.to_json(),
        "snapshot": {"name": "made-up.pkl", "sha256": NOTHING, "source": f"sha256:{NOTHING}"},
        "reference": "torch_ref",
        "parameters": {
            name: {"shape": list(shape), "sha256": NOTHING} for name, shape in shapes.parameters(config).items()
        },
        "amplification": {case: dict.fromkeys(blocks, 256.0) for case in cases},
        "not_finite": [],
        "gradient_sizes": dict.fromkeys(shapes.trained(config) if "gradients" in plan.checks else (), 0.0123456789),
        "training": None if training_of(plan) is None else {"images": 4, "steps": 1, "stds": [0.05, 0.1], "eps": 1e-6},
        "errors": errors,
        "repeat": 0.0,
        "environment": {"torch": "2.0", "device": "cpu", "processor": "none"},
        "switches": {"probes": {"a convolution": 1.0}, "problem": None},
        "seconds": 1.0,
    }


def values(key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class Parts:
    """A truth file taken apart: its members, and the record of truth.json without schema and digest."""

    def __init__(self, record: dict[str, Any], members: dict[str, bytes]):
        self.record, self.members = record, members

    @classmethod
    def made_up(cls, config: EDM2Config = SMALL, plan: Plan = PLAN):
        held = {key: values(key, *what) for key, what in arrays(config, plan).items()}
        members = {f"{key}.npy": npy_header(v.dtype.str, v.shape) + v.tobytes() for key, v in held.items()}
        table = {key: [v.dtype.str, list(v.shape), hashlib.sha256(v.tobytes()).hexdigest()] for key, v in held.items()}
        return cls({"members": table, "facts": as_json(facts(config, plan))}, members)

    @classmethod
    def of(cls, path: Path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        record = json.loads(members.pop(MEMBER))
        return cls({"members": record["members"], "facts": record["facts"]}, members)

    @property
    def facts(self) -> dict[str, Any]:
        return self.record["facts"]

    def say(self, *place: Any):
        """place: keys down to a value of the facts, and another value."""
        *keys, last, value = place
        node = self.facts
        for key in keys:
            node = node[key]
        node[last] = value

    def put(self, key: str, value: np.ndarray, header: bytes | None = None):
        """An array in the place of another, with the digest that is right for it."""
        data = np.asarray(value, order="C").tobytes()
        self.record["members"][key] = [value.dtype.str, list(value.shape), hashlib.sha256(data).hexdigest()]
        self.members[f"{key}.npy"] = (header or npy_header(value.dtype.str, value.shape)) + data

    def text(self) -> bytes:
        return sealed(json.dumps(self.record).encode())

    def archive(self, text: bytes | None = None) -> bytes:
        """The file; `text` in place of truth.json."""
        return archive([*self.members.items(), (MEMBER, self.text() if text is None else text)])


def sealed(record: bytes, schema: str = SCHEMA) -> bytes:
    """truth.json, with the digest that is right for it."""
    text = f'{{"schema": "{schema}", "sha256": "{NOTHING}", '.encode() + record.removeprefix(b"{")
    return text.replace(NOTHING.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def archive(members: list[tuple[str, bytes]], deflated: tuple[str, ...] = (), zip64: bool = True) -> bytes:
    """A zip archive as TruthWriter makes them, but with these members deflated."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as into:
        for name, data in members:
            about = zipfile.ZipInfo(name)
            about.compress_type = zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED
            with into.open(about, "w", force_zip64=zip64) as member:
                member.write(data)
    return file.getvalue()
