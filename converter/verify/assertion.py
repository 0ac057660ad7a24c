"""For other people's tests: a denoiser of theirs, held to what PyTorch computes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outcome import Outcome


def assert_agrees(source: str | os.PathLike[str], denoise: Callable[[Any, Any, Any], Any], **plan: Any) -> "Outcome":
    """Assert that a denoiser computes what the network of a snapshot does: `edm2-verify --candidate`, for tests.

    source: a snapshot, whose truth PyTorch computes (in a process of its own); or a truth file, FILE.npz, which
    `edm2-verify --save-truth FILE.npz --checks forward,derivative,trajectory` has made, and which needs no PyTorch.
    denoise(x, sigma, labels): D [N, C, H, W], or (D, logvar), in JAX and float32, of x [N, C, H, W], sigma [N] and
    labels [N, label_dim], one-hot, or None of a network without; see `converter.verify.request.Port`.
    plan: of a snapshot, fields of `converter.verify.cases.Plan`, such as seeds=(0, 1) or steps=8.
    Raises: AssertionError, with what edm2-verify prints, if it disagrees or if nothing can be concluded; ConverterError
    for what cannot be judged.
    """
    __tracebackhide__ = True  # of pytest: what it shows is the call

    from .cases import OF_ANY_DENOISER, Plan
    from .report.text import terminal, to_json
    from .request import FromSnapshot, FromTruth, Port, Request
    from .run import verify
    from .verdict import AGREES

    path = Path(source)
    name = f"{getattr(denoise, '__module__', '?')}:{getattr(denoise, '__qualname__', type(denoise).__name__)}"
    port = Port(name, denoise)
    request: Request
    if path.suffix == ".npz":
        if plan:
            raise TypeError(f"{', '.join(plan)}: is fixed by the truth file {path}")
        request = FromTruth(path, port=port)
    else:
        asked = Plan(**{"checks": OF_ANY_DENOISER, **plan})
        asked.check()
        request = FromSnapshot(path, asked, port=port)
    outcome = verify(request)
    if outcome.verdict != AGREES:
        raise AssertionError("\n".join(terminal(to_json(outcome))))
    return outcome
