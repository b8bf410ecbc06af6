"""The command line: load a recipe, call a stage, print. A ToolkitError becomes a message and an exit code.

Heavy libraries are imported only inside the commands that need them, so that ``toolkit --help`` takes under 0.3 s.
"""

import errno
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from toolkit.cli.commands import app
from toolkit.errors import Problem, RunError, ToolkitError

_DISK_FULL = ("No space left on device", "os error 28", "enforce fail at inline_container")
"""Messages of the operating system, safetensors and torch.save."""


def _write_errors() -> tuple[type[BaseException], ...]:
    safetensors = sys.modules.get("safetensors")  # loaded only by commands that train
    return (OSError, RuntimeError, *([safetensors.SafetensorError] if safetensors else []))


def _is_disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or any(text in str(error) for text in _DISK_FULL)


def _wants_json(arguments: Sequence[str] | None) -> bool:
    return "--json" in (sys.argv[1:] if arguments is None else arguments)


def _fail(error: ToolkitError, arguments: Sequence[str] | None) -> NoReturn:
    from toolkit.runfolder import hide_secrets

    if _wants_json(arguments):
        print(hide_secrets(json.dumps({"problems": [problem.to_json() for problem in error.problems]})))
    print(f"toolkit: {hide_secrets(str(error))} [{error.code}]", file=sys.stderr)
    sys.exit(error.exit_code)


def _run_with_json(arguments: Sequence[str] | None) -> NoReturn:
    """Run a command with --json. An invalid command line is printed as JSON too."""
    from typer.exceptions import TyperException

    try:
        code = app(args=arguments, standalone_mode=False)
    except TyperException as error:
        message = getattr(error, "format_message", error.__str__)().rstrip(".")
        problem = Problem("cli.arguments_invalid", message, remedy="`toolkit COMMAND --help` lists every option.")
        print(json.dumps({"problems": [problem.to_json()]}))
        print(f"toolkit: {problem} [{problem.code}]", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its exit code.

    0: success. 1: an error, with its message printed. 2: an invalid recipe or command line. 129, 130 and 143:
    stopped by SIGHUP, Ctrl-C or SIGTERM with the state saved. Any other exception than a ToolkitError is a bug and
    shows its traceback.

    Args:
        arguments: the command and its options. Default: those of the process.
    """
    from toolkit.runfolder.logs import hide_values_of_libraries

    hide_values_of_libraries()
    try:
        if _wants_json(arguments):
            _run_with_json(arguments)
        app(args=arguments)
    except ToolkitError as error:
        _fail(error, arguments)
    except KeyboardInterrupt:
        print("toolkit: stopped by Ctrl-C before any work began [run.interrupted]", file=sys.stderr)
        sys.exit(130)
    except _write_errors() as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            rule, remedy = "must be a path that you may read and write", "Change its permissions, or use another path."
            place = error.filename or ""
            denied = RunError("run.permission_denied", rule, place=place, value=error.strerror, remedy=remedy)
            _fail(denied, arguments)
        if not _is_disk_full(error):
            raise
        remedy = "Finished work is kept. Free disk space, and run the same command again to resume."
        _fail(RunError("run.disk_full", "the disk must have free space", value=str(error), remedy=remedy), arguments)
    finally:
        hide_values_of_libraries()  # again, because typer replaces the hook that prints a traceback
    sys.exit(0)
