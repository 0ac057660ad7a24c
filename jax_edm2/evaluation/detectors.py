"""The two networks whose features are compared, by the metric's name: fid and fd_dinov2."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jax_edm2.evaluation import inception
from jax_edm2.evaluation.dinov2 import DINOv2
from jax_edm2.messages import listing, printable

FID, FD_DINOV2 = "fid", "fd_dinov2"  # NVlabs' names
METRICS = (FID, FD_DINOV2)
# What is in the files beside what is needed: classifiers, counts that training kept, a token for pictures with holes.
UNUSED = {
    FID: (".num_batches_tracked", "fc.weight", "fc.bias"),
    FD_DINOV2: ("mask_token",),
}
SHIFT, SCALE = ".bn.bias", ".bn.weight"  # of Inception's norms; the scales are ones, and need not be there


@dataclass(frozen=True)
class Detector:
    """features(params, pictures): uint8 [N, 3, H, W] of any size to float32 [N, size]. Products are in full float32."""

    metric: str
    size: int
    features: Callable[[Any, jax.Array], jax.Array]
    params: Any

    @classmethod
    def of(
        cls, metric: str, tensors: Mapping[str, np.ndarray], *, vit: DINOv2 | None = None, platform: str | None = None
    ) -> "Detector":
        """From a network's tensors, which have the names of pytorch-fid (fid) or DINOv2's own code (fd_dinov2).

        vit: the transformer's size; ViT-L/14 by default. platform: of what will compute, by default JAX's.
        Raises: ValueError for tensors that are missing, too many, of another shape, or not finite.
        """
        vit = vit or DINOv2()
        check(metric, {name: np.shape(value) for name, value in tensors.items()}, vit)
        needed = inception.tensors() if metric == FID else vit.tensors()
        if bad := [name for name in tensors if name in needed and not np.isfinite(np.asarray(tensors[name])).all()]:
            raise ValueError(f"has values that are not finite: {listing(sorted(bad))}")
        if metric == FID:
            params = inception.prepare(tensors, platform or jax.default_backend())
            return cls(metric, inception.FEATURES, inception.features, params)
        return cls(metric, vit.width, vit.features, vit.prepare(tensors))


def check(metric: str, shapes: Mapping[str, tuple[int, ...]], vit: DINOv2 | None = None):
    """Are these a detector's tensors, by names and shapes? Raises: ValueError that lists how they differ."""
    if metric not in METRICS:
        raise ValueError(f"{metric!a:.40} is no metric: {' or '.join(METRICS)}")
    needed = inception.tensors() if metric == FID else (vit or DINOv2()).tensors()
    optional = {name.replace(SHIFT, SCALE): shape for name, shape in needed.items() if name.endswith(SHIFT)}
    problems = []
    for name, shape in {**needed, **optional}.items():
        if name in shapes and tuple(shapes[name]) != shape:
            problems.append(f"! {name} is {list(shapes[name])}, should be {list(shape)}")
        elif name in needed and name not in shapes:
            problems.append(f"- {name} {list(shape)} is missing")
    others = shapes.keys() - needed.keys() - optional.keys()
    unknown = sorted(name for name in others if not name.endswith(UNUSED[metric]))
    problems += [f"+ {printable(name[:200])} is not part of it" for name in unknown]
    if problems:
        what = "the Inception network of FID" if metric == FID else "DINOv2's ViT-L/14"
        raise ValueError(f"does not hold {what}: {listing(problems)}")
