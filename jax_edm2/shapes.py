"""The shapes of arrays in public signatures (docs.kidger.site/jaxtyping).

A letter that comes twice in one signature stands for the same size. The tests check every call; users' calls are not.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float, Shaped, UInt8

if TYPE_CHECKING:
    AnyArray = jax.Array
else:
    AnyArray = jax.Array | np.ndarray  # which JAX takes as well

Images = Float[AnyArray, "n c h w"]  # or latents, or noise
Pictures = UInt8[AnyArray, "n c h w"]
ChurnNoise = Float[AnyArray, "draws n c h w"]
Labels = Shaped[AnyArray, "*n label_dim"]  # one-hot; a ValueError says so of others
Sigma = Float[AnyArray, "..."]  # noise levels: one, or as many as there are images
Logvar = Float[AnyArray, "rows 1 1 1"]  # a row for each noise level
Activations = Float[AnyArray, "n h w c"]  # channels last, inside the network
Weight = Float[AnyArray, "out in *kernel"]
Values = Float[AnyArray, "*shape"]
Floats = Float[AnyArray, "..."]
