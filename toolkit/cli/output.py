"""What commands print beside their tables: one JSON object for ``--json``, and notes that ``--quiet`` hides."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.errors import Problem

SCHEMA_VERSION = 1
"""Version of the objects of ``--json``. It changes with the name or meaning of a key.

The content of a file of the run folder, such as results.json, keeps the version of that file."""

_QUIET = ContextVar("quiet", default=False)


@contextmanager
def quiet_output(wanted: bool) -> Iterator[None]:
    """Hide notes, progress and log lines below warnings while the block runs, if this is wanted."""
    token = _QUIET.set(wanted)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_quiet() -> bool:
    """Return whether the command has the option ``--quiet``."""
    return _QUIET.get()


def note(text: str) -> None:
    """Print a line on standard error, unless the command is quiet."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


def print_json(fields: Any, /, **more: Any) -> None:
    """Print a mapping or a dataclass as one JSON object, with ``schema_version`` and more keys.

    Dataclasses become objects, paths become text, NaN and infinities become null. Tokens are hidden.
    """
    from toolkit.runfolder import hide_secrets, json_text

    plain = json.loads(json_text(fields))
    content = {"schema_version": plain.pop("schema_version", SCHEMA_VERSION), **json.loads(json_text(more)), **plain}
    print(hide_secrets(json.dumps(content, indent=2, ensure_ascii=False)), flush=True)


def print_problems(problems: "Sequence[Problem]", exit_code: int) -> None:
    """Print the problems of a failed command as one JSON object."""
    print_json({"exit_code": exit_code, "problems": [problem.to_json() for problem in problems]})
