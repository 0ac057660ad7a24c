"""How good samples are: features of pictures, their moments, and the Fréchet distance of two of these.

detector = Detector.of("fid", tensors)  # of pytorch-fid's names; `converter.detectors` reads the files people have
gathering = Gathering([detector])
for pictures in batches:  # uint8 [N, 3, H, W]
    gathering.add(pictures)
gathering.settle()
distance = frechet_distance(gathering.moments["fid"].statistics(), reference)
"""

from jax_edm2.evaluation.detectors import FD_DINOV2, FID, METRICS, Detector
from jax_edm2.evaluation.dinov2 import DINOv2
from jax_edm2.evaluation.frechet import Distance, frechet_distance
from jax_edm2.evaluation.gathering import Gathering, merged
from jax_edm2.evaluation.moments import Moments, Statistics

__all__ = [
    "FD_DINOV2", "FID", "METRICS", "DINOv2", "Detector", "Distance", "Gathering", "Moments", "Statistics",
    "frechet_distance", "merged",
]  # fmt: skip
