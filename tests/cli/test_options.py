"""Options mean the same in every command that has them."""

import click
import pytest

from jax_edm2.converter.cli.convert import edm2_convert
from jax_edm2.converter.cli.dataset import edm2_dataset
from jax_edm2.converter.cli.metrics import edm2_metrics
from jax_edm2.converter.cli.paths import BroughtOrName, BroughtPath
from jax_edm2.converter.cli.phema import edm2_phema
from jax_edm2.converter.cli.sample import edm2_sample
from jax_edm2.converter.cli.train import edm2_train
from jax_edm2.converter.cli.verify import edm2_verify

# Of NVlabs' tools, or of what each command is about: the name is one, the thing is not.
DIFFERENT = {"--checkpoint", "--preset", "--resume", "--dest", "--batch", "--guidance", "--seed", "--outdir"}


def _commands(command: click.Command, name: str):
    yield name, command
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from _commands(each, f"{name} {below}")


COMMANDS = dict(
    found
    for command in (edm2_convert, edm2_dataset, edm2_metrics, edm2_phema, edm2_sample, edm2_train, edm2_verify)
    for found in _commands(command, command.name or "")
)


def _options(command: click.Command) -> dict[str, click.Option]:
    return {max(each.opts, key=len): each for each in command.params if isinstance(each, click.Option)}


def test_one_kind_of_value_for_a_name():
    kinds: dict[str, set] = {}
    for command in COMMANDS.values():
        for name, option in _options(command).items():
            kinds.setdefault(name, set()).add((option.metavar, type(option.type), option.is_flag, option.multiple))
    several = {name: found for name, found in kinds.items() if len(found) > 1 and name not in DIFFERENT}
    assert several == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_who_fetches_takes_what_fetching_takes(name):
    command = COMMANDS[name]
    fetches = any(isinstance(each.type, BroughtPath | BroughtOrName) for each in command.params)
    names = _options(command).keys()
    assert not fetches or {"--cache-dir", "--offline", "--timeout"} <= names
    assert "_" not in "".join(names - {"--P_mean", "--P_std"})  # as NVlabs spells them, both forms are taken
    works = not isinstance(command, click.Group) or command.invoke_without_command
    assert not works or "--json" in names or name.startswith("edm2-convert cache")
