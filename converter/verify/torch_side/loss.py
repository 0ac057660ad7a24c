"""The EDM2 loss in PyTorch, and the normalisation of weights that each step of training begins with."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from ..taps import block_scope
from .session import Session


def normalise(session: Session):
    """Every weight on its sphere (arXiv 2312.02696, Eq. 66)."""
    normalize = session.reference.namespace["normalize"]
    with torch.no_grad():
        for name, parameter in session.reference.net.named_parameters():
            if name.endswith(".weight"):
                parameter.copy_(normalize(parameter))


def losses(
    session: Session,
    images: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor,
    labels: np.ndarray | None,
    precision: str,
) -> torch.Tensor:
    """Elementwise [N, C, H, W] (Eqs. 14, 15, 21), for sigma [N, 1, 1, 1]. For `with_gradients`."""
    noisy = images + sigma * noise
    denoised, logvar = session.reference(noisy, sigma, labels, precision, return_logvar=True)
    weight = (sigma**2 + session.config.sigma_data**2) / (sigma * session.config.sigma_data) ** 2
    return weight / logvar.exp() * (denoised - images) ** 2 + logvar


@contextlib.contextmanager
def with_gradients(session: Session, by_parameters: bool = True) -> Iterator[None]:
    """While open, the network's parameters get gradients, or its input alone; what blocks compute is computed again on
    the way back, so that memory is that of one block."""
    net, architecture = session.reference.net, session.config.architecture
    names = [block_scope(spec) for spec in architecture.encoder + architecture.decoder]
    blocks = [net.get_submodule(name) for name in names]
    for block in blocks:
        block.forward = lambda *args, forward=block.forward: checkpoint(forward, *args, use_reentrant=False)
    net.requires_grad_(by_parameters)
    try:
        yield
    finally:
        net.requires_grad_(False)
        for block in blocks:
            del block.forward
    session.bar.update()
