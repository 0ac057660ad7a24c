"""The bijection between NVlabs' state_dict names and the paths of the JAX tree."""

_TORCH_TO_JAX = {"emb_noise": "emb_t_linear", "emb_fourier": "emb_t_fourier", "logvar_fourier": "logvar_fourier_t"}
_JAX_TO_TORCH = {jax: torch for torch, jax in _TORCH_TO_JAX.items()}
_CONSTANTS = {"freqs", "phases"}


def jax_path(name: str) -> str:
    """`unet.enc.64x64_block0.conv_res0.weight` -> `params/unet/enc_64x64_block0/conv_res0/mpconv_weight`."""
    *modules, leaf = name.split(".")
    if len(modules) >= 3 and modules[1] in ("enc", "dec"):
        modules[1:3] = [f"{modules[1]}_{modules[2]}"]
    modules = [_TORCH_TO_JAX.get(module, module) for module in modules]
    collection = "constants" if leaf in _CONSTANTS else "params"
    return "/".join([collection, *modules, "mpconv_weight" if leaf == "weight" else leaf])


def torch_name(path: str) -> str:
    """The inverse of `jax_path`."""
    _, *modules, leaf = path.split("/")
    modules = [_JAX_TO_TORCH.get(module, module) for module in modules]
    if len(modules) >= 2 and modules[1].startswith(("enc_", "dec_")):
        modules[1:2] = modules[1].split("_", 1)
    return ".".join([*modules, "weight" if leaf == "mpconv_weight" else leaf])
