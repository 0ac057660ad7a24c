"""XLA's compiled programs, kept between runs of our commands: the second run of a network begins at once.

JAX's own persistent cache, under the platform's cache folder; `JAX_COMPILATION_CACHE_DIR` puts it elsewhere, and
`JAX_ENABLE_COMPILATION_CACHE=false` does without. What is kept depends on the versions, flags and program (JAX's key)
and on the processor's instructions, after which the folder is named: caches are shared between machines that differ.
"""

import contextlib
import hashlib
import platform
from pathlib import Path

LIMIT = 2**30  # bytes; beyond it the oldest go
SHORTEST = 0.2  # seconds: what compiles faster is not kept


def keep_compiled():
    """Switch the cache on, before JAX compiles anything. If the folder cannot be written, nothing is cached."""
    import jax
    from platformdirs import user_cache_path

    if jax.config.values["jax_compilation_cache_dir"] or not jax.config.values["jax_enable_compilation_cache"]:
        return
    folder = user_cache_path("edm2-jax") / "compiled" / _instructions()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder, LIMIT)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)


def _instructions() -> str:
    """A name for what the processor understands."""
    text = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prune(folder: Path, limit: int):
    """Remove the oldest files until the rest is below the limit."""
    files = sorted(((path.stat(), path) for path in folder.iterdir()), key=lambda each: each[0].st_mtime)
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in files:
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size
