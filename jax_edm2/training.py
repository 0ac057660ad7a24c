"""What training an EDM2 network in JAX needs beside an optimiser."""

from typing import Any

import jax

from jax_edm2.ops import normalize


@jax.jit
def project_to_sphere(variables: Any) -> Any:
    """The same tree with every MPConv weight normalised over all axes but the first, gains and constants as they are.

    Forced weight normalisation (Eq. 66 of arXiv 2312.02696): apply it after every optimiser step.
    """

    def project(path, value):
        return normalize(value) if path and getattr(path[-1], "key", None) == "mpconv_weight" else value

    return jax.tree_util.tree_map_with_path(project, variables)
