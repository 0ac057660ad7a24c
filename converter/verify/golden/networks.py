"""The networks whose truths are recorded: six tiny ones with random weights, and the digits.

Together the tiny ones have every configuration option at a value that is not its default, and every kind of block.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from jax_edm2.config import EDM2Config, expected_tree

from ...errors import ConverterError
from ...names import jax_path, torch_name
from ...snapshot import read_snapshot

DATA = Path(__file__).parents[3] / "golden"  # the recordings, which nothing here makes
DIGITS = DATA / "digits.pkl"


class GoldenError(ConverterError):
    """Goldens that are missing or damaged."""


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {
        "img_resolution": 8, "img_channels": 3, "label_dim": 10, "model_channels": 8, "channel_mult": [1, 2],
        "num_blocks": 0, "attn_resolutions": [4], "channels_per_head": 8, "clip_act": 1.5,
    },
    "unconditional": {
        "img_resolution": 8, "img_channels": 4, "label_dim": 0, "model_channels": 6, "channel_mult": [2],
        "num_blocks": 2, "attn_resolutions": [8], "channels_per_head": 3, "sigma_data": 1.0, "clip_act": None,
    },
    "options": {
        "img_resolution": 8, "img_channels": 3, "label_dim": 5, "sigma_data": 0.4, "logvar_channels": 16,
        "model_channels": 8, "channel_mult": [1, 2], "channel_mult_noise": 2, "num_blocks": 1,
        "attn_resolutions": [4], "label_balance": 0.4, "concat_balance": 0.35, "resample_filter": [1, 3, 2, 1],
        "channels_per_head": 8, "dropout": 0.2, "res_balance": 0.3, "attn_balance": 0.4,
    },
    "balances": {
        "img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_channels": 8, "channel_mult": [1],
        "channel_mult_emb": 3, "num_blocks": 1, "attn_resolutions": [], "channels_per_head": 4, "label_balance": 0.9,
        "concat_balance": 0.7, "res_balance": 0.6, "attn_balance": 0.2, "use_fp16": False,
    },
    "three levels": {
        "img_resolution": 16, "img_channels": 2, "label_dim": 4, "model_channels": 4, "channel_mult": [1, 2, 3],
        "num_blocks": 0, "attn_resolutions": [8, 4], "channels_per_head": 4, "resample_filter": [1, 2, 0.5, 4],
        "clip_act": 2.0,
    },
    "one level": {
        "img_resolution": 6, "img_channels": 3, "label_dim": 200, "model_channels": 12, "channel_mult": [2],
        "num_blocks": 0, "attn_resolutions": [6], "channels_per_head": 64, "sigma_data": 0.3, "logvar_channels": 33,
    },
}  # fmt: skip


def weights(name: str) -> dict[str, np.ndarray]:
    """float32 tensors of a tiny network, by their names in a snapshot.

    From numpy's RandomState, whose streams are frozen, in the order of the names; gains from 0.5 to 1.5. All values
    are float16's, as in a snapshot.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    random = np.random.RandomState(seed)
    tree = {torch_name(path): shape for path, shape in expected_tree(EDM2Config(**NETWORKS[name])).items()}
    tensors = {}
    for key in sorted(tree):
        if key.endswith("gain"):
            value = np.asarray(random.uniform(0.5, 1.5))
        elif key.endswith("phases"):
            value = random.uniform(0, 2 * math.pi, tree[key])
        else:
            value = random.standard_normal(tree[key]) * (2 * math.pi if key.endswith("freqs") else 1)
        tensors[key] = value.astype(np.float16).astype(np.float32)
    return tensors


def network_config(network: str) -> EDM2Config:
    """Of a golden's network. Raises: GoldenError."""
    if network == "digits":
        with read_snapshot(DIGITS) as snapshot:
            return snapshot.config
    if network not in NETWORKS:
        raise GoldenError(f"a golden is of {network!a:.60}, and no network has that name")
    return EDM2Config(**NETWORKS[network])


def network_tensors(network: str) -> dict[str, np.ndarray]:
    """float32 tensors of a golden's network, by their names in a snapshot. Raises: GoldenError."""
    if network == "digits":
        with read_snapshot(DIGITS) as snapshot:
            return {name: np.asarray(snapshot.read(name), np.float32) for name in snapshot.tensors}
    network_config(network)
    return weights(network)


def normalised_digest(tensors: dict[str, np.ndarray]) -> str:
    """sha256 of all tensors, weights normalised in float64 (Eq. 47 without the gain), as float32, in JAX's order.

    The sums are numpy's, pairwise, in an order that its versions have kept; half a unit of float32 is far above them.
    """
    sha = hashlib.sha256()
    for path in sorted(map(jax_path, tensors)):
        weight = tensors[torch_name(path)].astype(np.float64)
        if path.endswith("mpconv_weight"):
            norm = np.sqrt(np.square(weight).sum(tuple(range(1, weight.ndim)), keepdims=True))
            weight = weight / (norm / np.sqrt(weight[0].size) + 1e-4)
        sha.update(weight.astype("<f4").tobytes())
    return sha.hexdigest()
