"""Where the trajectory ended, as pictures inside a report: the truth, PyTorch, JAX, and how JAX differs."""

import base64
import io
from typing import Any

import numpy as np

LARGE = 192  # pixels: smaller pictures are enlarged to that


def data_uris(samples: dict[str, Any]) -> dict[str, str]:
    """PNG files as data: URIs, by name. samples: float32 [C, H, W] of the truth, of JAX, and perhaps of PyTorch.

    Of latents, the first three channels are shown as colours. The difference of JAX from the truth is enlarged until
    its largest value is seen, by a factor that its name tells.
    """
    if not samples:
        return {}
    truth, jax = (_shown(samples[name]) for name in ("truth", "JAX"))
    spread = max(float(np.abs(truth).max()), 1e-30)
    factor = spread / max(float(np.abs(jax - truth).max()), 1e-30)
    pictures = {name: _shown(sample) / spread for name, sample in samples.items()}
    words = f"JAX - truth, times {factor:.0e}" if factor < 1e29 else "JAX - truth: none"
    return {name: _png(picture) for name, picture in [*pictures.items(), (words, (jax - truth) * factor / spread)]}


def _shown(sample: Any) -> np.ndarray:
    """One or three channels, without what is not finite."""
    array = np.nan_to_num(np.asarray(sample, np.float64))
    return array[:3] if len(array) >= 3 else array[:1]


def _png(picture: np.ndarray) -> str:
    from PIL import Image

    values = np.clip(picture * 127.5 + 128, 0, 255).astype(np.uint8)
    image = Image.fromarray(values.transpose(1, 2, 0) if len(values) == 3 else values[0])
    scale = max(1, LARGE // image.width)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
