"""Applications and commands of typer that every command of `toolkit` uses: shared options, and former names."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from toolkit.cli.output import quiet_output

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no progress and no log lines, only warnings, errors and results.")
]
Function = Callable[..., Any]


class _Group(TyperGroup):
    """A group of commands that suggests the new name of a renamed command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that ``args`` name, and its arguments."""
        if args and args[0] not in self.commands:
            _reject_renamed(ctx, f"toolkit {self.name} {args[0]}")
        return super().resolve_command(ctx, args)


class _Command(TyperCommand):
    """A command that suggests the new name of a renamed option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments that are left after the options."""
        for word in args:
            if word.startswith("--"):
                _reject_renamed(ctx, word.partition("=")[0])
        return super().parse_args(ctx, args)


class App(typer.Typer):
    """A group whose commands have the option ``--quiet``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, **options)

    def command(  # type: ignore[override]  # typer lists each option
        self, name: str | None = None, *, examples: Sequence[str] = (), **options: Any
    ) -> Callable[[Function], Function]:
        """Return a decorator that registers a function as a command.

        Args:
            name: of the command. None: that of the function.
            examples: command lines that end the help text.
            options: those of typer.
        """
        # typer keeps a line of an epilog only if empty lines surround it.
        epilog = "\n\n".join(["Examples:", *examples]) if examples else None
        register = super().command(name, cls=_Command, epilog=epilog, **options)

        def decorate(function: Function) -> Function:
            register(_with_quiet(function))
            return function

        return decorate


def _with_quiet(function: Function) -> Function:
    """Return the function of a command with one more parameter, the option ``--quiet``."""

    @functools.wraps(function)
    def call(*, quiet: bool = False, **given: Any) -> Any:
        with quiet_output(quiet):
            return function(**given)

    signature = inspect.signature(function)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    call.__annotations__ = {**function.__annotations__, "quiet": Quiet}
    return call


def _reject_renamed(ctx: Any, former: str) -> None:
    from toolkit.recipe.renamed import use_new_name  # imports pydantic, which `toolkit --help` must not wait for

    if remedy := use_new_name(former):
        ctx.fail(f"{former} was renamed. {remedy}")
