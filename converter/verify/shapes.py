"""The arrays of a truth file: the dtype and shape of each, as the plan and the configuration determine them."""

from collections.abc import Iterator

from jax_edm2.config import BlockSpec, EDM2Config, expected_tree
from jax_edm2.state_layout import MOMENTS, NET, average_part

from ..names import torch_name
from .cases import STEP, Plan, Training
from .taps import (
    DENOISED,
    EMBEDDING,
    INPUT,
    LOGVAR,
    OUT_CONV,
    Tap,
    block_scope,
    conv_in_scope,
    scopes,
    taps,
)

Shape = tuple[int, ...]
DOUBLE, SINGLE = "<f8", "<f4"
PROJECTED = (9,)  # a norm and the projections: see `truth.projection`
SAMPLE = "sample"  # of PyTorch in the precision that is judged, where the trajectory ends
OUTPUTS = ("denoised", "logvar")
MADE_OF = ("gradient", "step", "ema")  # what is kept of every parameter
DERIVATIVE, TRAINING = "derivative", "training"  # checks, and what keys of theirs begin with


def parameters(config: EDM2Config) -> dict[str, Shape]:
    """Of all tensors of a snapshot, by name."""
    return {torch_name(path): shape for path, shape in expected_tree(config).items()}


def trained(config: EDM2Config) -> dict[str, Shape]:
    """Of those that have gradients."""
    return {torch_name(path): shape for path, shape in expected_tree(config).items() if path.startswith("params/")}


def kept(config: EDM2Config) -> dict[str, Shape]:
    """Of the taps that a golden keeps, for one image: what each scope ends with."""
    last = {tap.scope: str(tap) for tap in taps(config)}
    shapes = tap_shapes(config, 1)
    return {name: shapes[name] for name in last.values()}


def of_a_case(config: EDM2Config, batch: int) -> dict[str, Shape]:
    """Of what the network returns."""
    c, r = config.img_channels, config.img_resolution
    return {"denoised": (batch, c, r, r), "logvar": (batch, 1, 1, 1)}


def of_the_rest(
    config: EDM2Config, plan: Plan, training: Training | None, reduced: bool
) -> Iterator[tuple[str, str, Shape]]:
    """(key, dtype, shape) of everything that belongs to no case. reduced: of a golden."""
    c, r = config.img_channels, config.img_resolution
    if "trajectory" in plan.checks:
        yield "trajectory", DOUBLE, (plan.steps + 1, 1, c, r, r)
    if "gradients" in plan.checks:
        yield "loss", DOUBLE, ()
        yield (
            "gradient/input",
            *((DOUBLE, PROJECTED) if reduced else (SINGLE, (min(STEP.batch, plan.batch), c, r, r))),
        )
        for name, shape in trained(config).items():
            for kind in MADE_OF[:1] if reduced else MADE_OF:
                yield (f"{kind}/{name}", *((DOUBLE, PROJECTED) if reduced else (SINGLE, shape)))
    if DERIVATIVE in plan.checks:
        for seed in plan.seeds:
            yield f"{DERIVATIVE}/seed{seed}", DOUBLE, (plan.batch, c, r, r)
    if training is not None:
        for name in ("loss", "gradient_norm", "rate"):
            yield f"{TRAINING}/{name}", DOUBLE, (plan.updates,)
        yield f"{TRAINING}/images", DOUBLE, ()
        for part in (NET, *MOMENTS, *map(average_part, training.stds)):
            if reduced:
                yield f"{TRAINING}/{part}", DOUBLE, PROJECTED
                continue
            for name, shape in trained(config).items():
                yield f"{TRAINING}/{part}/{name}", SINGLE, shape


def of_pictures(config: EDM2Config, plan: Plan) -> dict[str, tuple[str, Shape]]:
    """Of what is shown and never judged, which truths of before do not have: dtype and shape by key."""
    image = (1, config.img_channels, config.img_resolution, config.img_resolution)
    return {SAMPLE: (SINGLE, image)} if "trajectory" in plan.checks else {}


def tap_shapes(config: EDM2Config, batch: int) -> dict[str, Shape]:
    """Of every tap, as PyTorch has it."""
    c, r = config.img_channels, config.img_resolution
    ends: dict[Tap | str, Shape] = {
        f"{INPUT}/c_noise": (batch,),
        f"{INPUT}/scaled_input": (batch, c, r, r),
        f"{EMBEDDING}/emb_fourier": (batch, config.noise_channels),
        f"{EMBEDDING}/label_scale": (batch, config.label_dim),
        f"{conv_in_scope(config)}/ones": (batch, c + 1, r, r),
        f"{conv_in_scope(config)}/conv": (batch, config.widths[0], r, r),
        f"{OUT_CONV}/conv": (batch, c, r, r),
        str(DENOISED): (batch, c, r, r),
        f"{LOGVAR}/logvar_fourier": (batch, config.logvar_channels),
        f"{LOGVAR}/logvar_linear": (batch, 1),
    }
    blocks = {block_scope(spec): spec for spec in config.architecture.encoder + config.architecture.decoder}
    found = {}
    for scope, operations in scopes(config).items():
        for operation in operations:
            tap = f"{scope}/{operation}"
            if scope in blocks:
                found[tap] = _in_block(blocks[scope], operation, batch)
            else:
                found[tap] = ends.get(tap, (batch, config.emb_channels))
    return found


def unlabelled_shapes(config: EDM2Config, batch: int) -> dict[str, Shape]:
    """Of the embedding's taps with class_labels=None, which stands for one label of zeros."""
    shapes = {name: shape for name, shape in tap_shapes(config, batch).items() if name.startswith(f"{EMBEDDING}/")}
    one = (f"{EMBEDDING}/label_scale", f"{EMBEDDING}/emb_label")
    return {name: (1, *shape[1:]) if name in one else shape for name, shape in shapes.items()}


def _in_block(spec: BlockSpec, operation: str, batch: int) -> Shape:
    r, cin, cout = spec.resolution, spec.in_channels, spec.out_channels
    if operation == "emb_linear":
        return batch, cout
    if operation == "qkv_norm":
        return batch, spec.num_heads, cout // spec.num_heads, 3, r * r
    before = operation in ("concat", "resample") or (operation == "silu0" and spec.flavor == "dec")
    return batch, {"attn_qkv": 3 * cout}.get(operation, cin if before else cout), r, r
