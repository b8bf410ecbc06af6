"""The tables of commands and their options, from the application itself."""

from collections.abc import Iterator
from typing import Any

import typer

from docs.generate.error_pages import escape
from toolkit.cli.commands import app


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the words and the object of every command, in the order of `toolkit --help`."""
    yield from _leaves(typer.main.get_command(app), ())


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
    for name, one in (inner or {}).items():
        if not one.hidden:
            yield from _leaves(one, (*path, name))


def command_table() -> str:
    """Return a table of all commands."""
    rows = [f"| `toolkit {path}` | {_first_sentence(command)} |" for path, command in commands()]
    return "\n".join(["| command | purpose |", "|---|---|", *rows])


def option_lists() -> str:
    """Return the arguments and options of every command as lists."""
    return "\n\n".join(_section(path, command) for path, command in commands())


def _first_sentence(command: Any) -> str:
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return escape(text.partition(". ")[0].removesuffix("."))


def _section(path: str, command: Any) -> str:
    paragraphs = [escape(" ".join(part.split())) for part in (command.help or "").split("\n\n")]
    lines = [_parameter(one) for one in command.params if not getattr(one, "hidden", False)]
    return "\n".join([f"### toolkit {path}\n", "\n\n".join(paragraphs), "", *lines]).rstrip()


def _parameter(one: Any) -> str:
    """Return the entry of an argument or option."""
    shown = "" if getattr(one, "is_flag", False) else one.metavar or one.name.upper()
    if one.param_type_name == "argument":
        name = f"`{shown}`"
        facts = ["required" if one.required else "optional", *(["repeatable"] if one.nargs == -1 else [])]
    else:
        name = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts)) + (f" `{shown}`" if shown else "")
        facts = [*(["required"] if one.required else []), *(["repeatable"] if one.multiple else [])]
        facts += [f"default `{one.default}`"] if _has_default(one) else []
    return f"- {name}{' (' + ', '.join(facts) + ')' if facts else ''}: {escape(one.help or '')}"


def _has_default(one: Any) -> bool:
    return isinstance(one.default, int | float | str) and not isinstance(one.default, bool) and one.default != ""
