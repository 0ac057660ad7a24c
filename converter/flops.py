"""How much work one denoiser evaluation of one image is, from the description of the architecture."""

import math

from jax_edm2.config import BlockSpec, EDM2Config, expected_tree


def multiply_accumulates(config: EDM2Config) -> int:
    """Of convolutions, linear layers and attention; resampling apart. FLOP are twice that."""
    architecture, emb = config.architecture, config.emb_channels
    pixels = config.img_resolution**2
    total = emb * (config.noise_channels + config.label_dim)
    total += 9 * pixels * config.widths[0] * (config.img_channels + 1)
    for spec in architecture.encoder + architecture.decoder:
        cin, cout, area = spec.in_channels, spec.out_channels, spec.resolution**2
        total += emb * cout + 9 * area * cout * ((cout if spec.flavor == "enc" else cin) + cout)
        if cin != cout:
            total += area * cin * cout
        if spec.num_heads:
            total += 4 * area * cout**2 + 2 * area**2 * cout
    return total + 9 * pixels * config.widths[0] * config.img_channels


def paper_flops(config: EDM2Config) -> int:
    """What the papers' "Gflops" count (arXiv 2312.02696, Table 2), by the rules of NVlabs' own counter.

    1 for a multiply-accumulate; 1 per result of add, mul and div; 1 per element that a norm is taken of; 2 for a lerp
    or a clamp, 3 for SiLU or softmax. Weights are normalised in every evaluation, which is 3 per parameter. Work on a
    few numbers per channel or pixel, such as the embedding's, is left out: less than 1e-5 of the total.
    """
    blocks = config.architecture.encoder + config.architecture.decoder
    weights = [shape for shape in expected_tree(config).values() if len(shape) > 1]
    normalisation = 3 * sum(math.prod(shape) for shape in weights)
    return multiply_accumulates(config) + normalisation + sum(_elementwise(config, spec) for spec in blocks)


def _elementwise(config: EDM2Config, spec: BlockSpec) -> int:
    """Of one block, resampling included."""
    cin, cout, area = spec.in_channels, spec.out_channels, spec.resolution**2
    norm, silu, mp_sum = 2, 3 + 1, 2 + 1  # per element
    per_pixel = silu * (cout if spec.flavor == "enc" else cin) + silu * cout + cout  # the modulation
    per_pixel += mp_sum * cout
    if spec.resample != "keep":
        per_pixel += len(config.resample_filter) ** 2 * cin
    if spec.flavor == "enc":
        per_pixel += norm * cout
    if spec.concat:
        per_pixel += cin
    if spec.num_heads:
        per_pixel += norm * 3 * cout + cout + 3 * spec.num_heads * area + mp_sum * cout
    if config.clip_act is not None:
        per_pixel += 2 * cout
    return area * per_pixel
