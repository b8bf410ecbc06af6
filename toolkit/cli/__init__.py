"""The command line: loads a recipe, calls a stage, prints; a ToolkitError becomes its message and an exit code.

Nothing heavy is imported before a command needs it: ``toolkit --help`` answers in under 0.3 s.
"""

import errno
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from toolkit.cli.commands import app
from toolkit.errors import RunError, ToolkitError

_DISK_FULL = ("No space left on device", "os error 28", "enforce fail at inline_container")
"""How the operating system, safetensors and torch.save say it."""


def _errors_of_writing() -> tuple[type[BaseException], ...]:
    safetensors = sys.modules.get("safetensors")  # loaded only by commands that train
    return (OSError, RuntimeError, *([safetensors.SafetensorError] if safetensors else []))


def _is_disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in _DISK_FULL)


def _fail(error: ToolkitError, arguments: Sequence[str] | None) -> NoReturn:
    from toolkit.runfolder import hide_secrets

    if "--json" in (sys.argv[1:] if arguments is None else arguments):
        print(hide_secrets(json.dumps({"problems": [problem.to_json() for problem in error.problems]})))
    print(f"toolkit: {hide_secrets(str(error))} [{error.code}]", file=sys.stderr)
    sys.exit(error.exit_code)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command (default: that of the process) and leave with its exit code.

    0: done. 1: a problem that the message tells. 2: a wrong recipe or command line. 130 and 143: stopped by Ctrl-C or
    SIGTERM with the state saved. Anything that is not a ToolkitError is a bug and shows its traceback.
    """
    try:
        app(args=arguments)
    except ToolkitError as error:
        _fail(error, arguments)
    except KeyboardInterrupt:
        print("toolkit: stopped by Ctrl-C before any work began [run.interrupted]", file=sys.stderr)
        sys.exit(130)
    except _errors_of_writing() as error:
        if not _is_disk_full(error):
            raise
        remedy = "Finished work is kept. Free disk space, and run the same command again to resume."
        _fail(RunError("run.disk_full", "the disk must have free space", value=str(error), remedy=remedy), arguments)
    sys.exit(0)
