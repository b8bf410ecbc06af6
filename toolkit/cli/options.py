"""Arguments and options that several commands have, and the error about an invalid one."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.errors import ToolkitError


class ArgumentError(ToolkitError):
    """An argument or option with an invalid value."""

    exit_code = 2


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]
ModelChoice = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="adapter, merged, gguf, a quantization such as q8_0, or a path to weights."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value, such as grpo.learning_rate=1e-6."),
]
