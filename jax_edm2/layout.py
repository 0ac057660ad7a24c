"""How a layer's weights are laid out: as they are stored, or folded for inference.

A layer asks for its layout to know the shape of its weights and what to compute with them; `fold` asks for the same one
to know what to make of those that are stored.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import jax

from jax_edm2 import winograd

# Of a network: weights as stored, or what `folding.fold` makes of them.
Folded = Literal["", "direct", "winograd", "cudnn"]


@dataclass(frozen=True)
class Layout:
    """The layout of one layer's weights.

    OI and OIHW are as stored: [out, in] of a linear layer, [out, in, height, width] of a convolution. HWIO is [height,
    width, in, out], and OHWI, for cuDNN, [out, height, width, in], which no evaluation has to transpose; IO is [in,
    out] of a 1x1 convolution that is a product of matrices; winograd is [16, in, out], kernels that are transformed.
    """

    kind: Literal["OI", "OIHW", "HWIO", "OHWI", "IO", "winograd"]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, stored: tuple[int, ...], folded: Folded) -> Self:
        """That of weights whose shape is `stored` before they are folded, in a network that is `folded` or ("") not."""
        out, channels, *kernel = stored
        if not kernel:
            return cls("OI", stored)
        if not folded:
            return cls("OIHW", stored)
        if folded == "winograd" and winograd.serves(stored):
            return cls("winograd", (winograd.PRODUCTS, channels, out))
        if folded == "cudnn":
            return cls("IO", (channels, out)) if kernel == [1, 1] else cls("OHWI", (out, *kernel, channels))
        return cls("HWIO", (*kernel, channels, out))

    def arrange(self, w: jax.Array, dtype: Any) -> jax.Array:
        """Weights w, in the shape and order of those that are stored, in this layout.

        dtype: of the network's activations, in which a convolution uses them. Linear layers are the embedding's, which
        is never in half precision.
        """
        if self.kind in ("OI", "OIHW"):
            return w
        if self.kind == "OHWI":
            return w.transpose(0, 2, 3, 1).astype(dtype)
        if self.kind == "IO":
            return w[:, :, 0, 0].T.astype(dtype)
        w = w.transpose(2, 3, 1, 0)
        return winograd.transform(w) if self.kind == "winograd" else w.astype(dtype)
