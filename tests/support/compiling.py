"""How XLA compiles in tests: quickly, since most of what they compile is computed once."""

# Code that LLVM has not optimised, and loops of an older kind, which take a fifth of the time and half of the memory
# to make. Numbers as users see them are held to PyTorch's by `make first-minutes`, `make readme` and the surveys,
# where nothing sets these flags.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def flags(devices: int) -> str:
    """XLA_FLAGS, for so many devices of the host."""
    quickly = (f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *quickly])
