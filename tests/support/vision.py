"""torchvision's operators by name, so that it can be imported beside a torch without CUDA.

Its wheel is built for one with CUDA, and its own operators do not load beside another; what tests need of it, the
networks, is plain Python. diffusers imports it as soon as it is there.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")  # what it defines is there as long as it is
for _name in ("nms", "qnms"):
    LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
