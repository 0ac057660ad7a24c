"""The devices that JAX computes on, alone or with other processes."""

from dataclasses import dataclass

from .compiled import keep_compiled
from .errors import ConverterError

PATIENCE = 24 * 3600  # seconds that a process waits at its end for the others


class DeviceError(ConverterError):
    """JAX has no such device, or the other processes were not found."""


@dataclass(frozen=True)
class Cluster:
    """What `jax.distributed.initialize` is told; None is found out by itself, on clusters that JAX knows."""

    coordinator: str | None = None  # host:port of process 0
    num_processes: int | None = None
    process_id: int | None = None


def start(device: str, cluster: Cluster | None = None):
    """Bring JAX up on auto, cpu, gpu or tpu, before anything else uses it. Raises: DeviceError."""
    import jax

    keep_compiled()
    if device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    if cluster is not None:
        try:
            jax.distributed.initialize(
                cluster.coordinator, cluster.num_processes, cluster.process_id, shutdown_timeout_seconds=PATIENCE
            )
        except (RuntimeError, ValueError, ImportError) as error:
            raise DeviceError(
                f"the processes did not find each other ({_short(error) or 'JAX does not say why'}); "
                "give each --coordinator HOST:PORT, --num-processes and --process-id"
            ) from None
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # JAX raises either
        reason = _short(error).partition(" (set JAX_PLATFORMS")[0]
        raise DeviceError(f"JAX finds no {device} here{f' ({reason})' if reason else ''}; try --device cpu") from None


def gave_up(error: Exception, advice: str) -> str:
    """What is said of JAX's own error in the midst of computing, of memory that ended above all."""
    return f"JAX could not go on ({_short(error):.150}); {advice}"


def _short(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"
