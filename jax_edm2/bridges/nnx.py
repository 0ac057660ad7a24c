"""EDM2's denoiser as a module of Flax NNX (flax.readthedocs.io): `nnx.jit`, `nnx.grad`, `nnx.Optimizer`, `nnx.split`.

    model = jax_edm2.nnx.load("edm2-img512-s.safetensors", dtype=jnp.float32)
    denoised = model(x, sigma, labels)
    jax_edm2.save("mine.safetensors", model.net, model.variables)

The numbers are those of the linen network: it is what runs.
"""

import os
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jax_edm2.checkpoint import load as load_checkpoint
from jax_edm2.network import Precond
from jax_edm2.shapes import Images, Labels, Logvar, Sigma
from jax_edm2.training.loss import project_to_sphere


class Constant(nnx.Variable):
    """Fourier features: part of a network, and never trained."""


class Denoiser(nnx.Module):
    """D(x; sigma, labels) with its variables as NNX has them: weights and gains are `nnx.Param`, the rest `Constant`.

    `model.train()` turns dropout on, and `model.eval()` off, as it is at first. Its keys come from `rngs`, given here
    or at a call: its stream "dropout", or the default one.
    """

    def __init__(self, net: Precond, variables: Any, *, rngs: nnx.Rngs | None = None):
        """net, variables: as `jax_edm2.load` gives them, or `net.init`."""
        self.net = net
        self.params = _held(variables["params"], nnx.Param)
        self.constants = _held(variables["constants"], Constant)
        self.deterministic = True
        self.rngs = nnx.data(rngs)

    def __call__(
        self,
        x: Images,
        sigma: Sigma | float,
        class_labels: Labels | None = None,
        *,
        return_logvar: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Images | tuple[Images, Logvar]:
        """As `jax_edm2.Precond`: x [N, C, H, W], sigma > 0 a noise level or [N], labels one-hot [N, label_dim] or None.

        Returns D [N, C, H, W], or D and logvar [N, 1, 1, 1], in float32.
        Raises: ValueError for inputs of other shapes; for parameters in float16, or no rngs, while dropout is on.
        """
        dropout = {}
        if not self.deterministic and self.net.config.dropout:
            if (keys := rngs or self.rngs) is None:
                raise ValueError("dropout needs keys: pass rngs=nnx.Rngs(0) to this call or to load, or model.eval()")
            dropout = {"dropout": keys.dropout()}
        outputs: Any = self.net.apply(
            self.variables, x, sigma, class_labels, return_logvar=return_logvar, train=not self.deterministic,
            rngs=dropout,
        )  # fmt: skip
        return outputs

    @property
    def variables(self) -> dict[str, Any]:
        """The tree of the linen network: for `jax_edm2.save`, `fold`, `sample`, or `model.net.apply`."""
        return {
            name: nnx.to_pure_dict(nnx.state(held))
            for name, held in (("params", self.params), ("constants", self.constants))
        }

    def project_to_sphere(self):
        """Normalise the weights in place (Eq. 66 of arXiv 2312.02696), as every training step of EDM2's begins."""
        nnx.update(self.params, nnx.state(_held(project_to_sphere(self.variables)["params"], nnx.Param)))


def load(path: str | os.PathLike, *, rngs: nnx.Rngs | None = None, **options: Any) -> Denoiser:
    """A converted network as an NNX module. options: as for `jax_edm2.load`; dtype=jnp.float32 to train it.

    Raises: as `jax_edm2.load`.
    """
    return Denoiser(*load_checkpoint(path, **options), rngs=rngs)


def _held(tree: Any, kind: type[nnx.Variable]) -> Any:
    if isinstance(tree, Mapping):
        return nnx.Dict({name: _held(value, kind) for name, value in tree.items()})
    return kind(tree)
