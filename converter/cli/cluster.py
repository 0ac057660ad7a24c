"""Options of commands that may be one of several processes, each with devices of its own."""

from collections.abc import Callable

import click

from ..devices import Cluster


def cluster_options(command: Callable) -> Callable:
    """Adds --distributed, --coordinator, --num-processes and --process-id: `cluster_of` takes what they give."""
    for option in reversed(
        (
            click.option(
                "--distributed", is_flag=True, help="This is one of several processes, which a cluster started."
            ),
            click.option("--coordinator", metavar="HOST:PORT", help="Of process 0, where there is no such cluster."),
            click.option("--num-processes", type=click.IntRange(1), help="How many processes there are."),
            click.option("--process-id", type=click.IntRange(0), help="Which of them this is."),
        )
    ):
        command = option(command)
    return command


def cluster_of(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    """What the options of `cluster_options` come to. Raises: click.UsageError."""
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise click.UsageError("--coordinator, --num-processes and --process-id go together")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise click.UsageError(f"--process-id {process_id} is not below --num-processes {num_processes}")
    return Cluster(coordinator, num_processes, process_id) if distributed or all(given) else None
