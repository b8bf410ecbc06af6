"""The command line: loads a recipe, calls a stage, prints; a ToolkitError becomes its message and an exit code.

Nothing heavy is imported before a command needs it: ``toolkit --help`` answers in under 0.3 s.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from toolkit.cli.commands import app
from toolkit.errors import ToolkitError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command (default: that of the process) and leave with its exit code.

    0: done. 1: a problem that the message tells. 2: a wrong recipe or command line. 130 and 143: stopped by Ctrl-C or
    SIGTERM with the state saved. Anything that is not a ToolkitError is a bug and shows its traceback.
    """
    try:
        app(args=arguments)
    except ToolkitError as error:
        from toolkit.run import hide_secrets

        print(f"toolkit: {hide_secrets(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)
