"""The trajectory of the deterministic Heun sampler (arXiv 2206.00364, Algorithm 1)."""

import numpy as np

from jax_edm2.torch_ref.sampling import heun_states, noise_levels

from ..cases import trajectory_start
from ..metrics import difference
from ..shapes import SAMPLE
from .session import Session, as_numpy


def write_trajectory(session: Session):
    session.keep("trajectory", np.stack(_states(session, "float32")))


def trajectory_errors(session: Session) -> list[float]:
    """Of PyTorch in the precision that is judged, one for each state."""
    states = _states(session, session.plan.precision)
    session.truth[SAMPLE] = states[-1].astype(np.float32)
    return [difference(x, exact).error for x, exact in zip(states, session.truth["trajectory"], strict=True)]


def _states(session: Session, precision: str) -> list[np.ndarray]:
    """First to last."""
    noise, labels = trajectory_start(session.config, session.plan.seeds[0])

    def denoise(x, sigma):
        session.bar.update()
        return session.reference(x, sigma, labels, precision)

    return [as_numpy(x) for x in heun_states(denoise, session.put(noise), noise_levels(session.plan.steps))]
