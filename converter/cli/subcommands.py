"""A command that works on a SOURCE, and has commands of its own beside."""

import click


class SourceOrCommand(click.Group):
    """`tool SOURCE` does the group's own work; where the first argument is a command's name, `tool NAME` is that.

    A click.Group takes its own arguments first: a SOURCE would swallow the command's name. So this one is parsed and
    shown as a plain command, unless a command is named. A file of the same name goes by ./NAME.
    """

    collect_usage_pieces = click.Command.collect_usage_pieces
    format_options = click.Command.format_options  # the epilog names the commands
    allow_extra_args = False
    allow_interspersed_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            ctx.invoked_subcommand, ctx.args = args[0], list(args)
            return ctx.args
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context):
        if ctx.invoked_subcommand is None:
            return click.Command.invoke(self, ctx)
        name, *rest = ctx.args
        command = self.commands[name]
        with command.make_context(name, rest, parent=ctx) as inner:
            return command.invoke(inner)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The usage line of a command has no SOURCE before the command's name."""
        return super().get_params(ctx) if ctx.command is self else []
