"""The command line: load a recipe, call a stage, print. A ToolkitError becomes a message and an exit code.

Heavy libraries are imported only inside the commands that need them, so that ``toolkit --help`` takes under 0.3 s.
"""

import atexit
import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from toolkit.cli.commands import app
from toolkit.cli.options import ArgumentError
from toolkit.cli.output import print_problems
from toolkit.errors import ExitCode, Problem, RunError, ToolkitError, path_error

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FULL = (
    *map(os.strerror, _NO_SPACE),
    *(f"os error {number})" for number in _NO_SPACE),
    "enforce fail at inline_container",
)
"""Messages of the operating system, safetensors and torch.save."""


def _write_errors() -> tuple[type[BaseException], ...]:
    safetensors = sys.modules.get("safetensors")  # loaded only by commands that train
    return (OSError, RuntimeError, ValueError, *([safetensors.SafetensorError] if safetensors else []))


def _is_disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _NO_SPACE or any(text in str(error) for text in _DISK_FULL)


def _wants_json(arguments: Sequence[str] | None) -> bool:
    return "--json" in (sys.argv[1:] if arguments is None else arguments)


def _fail(error: ToolkitError, arguments: Sequence[str] | None) -> NoReturn:
    from toolkit.identifiers import LINES, printable
    from toolkit.runfolder import hide_secrets

    if _wants_json(arguments):
        with suppress(OSError):  # a full disk or a closed pipe, which may be the error itself
            print_problems(error.problems, error.exit_code)
    print(f"toolkit: {printable(hide_secrets(str(error)), LINES)} [{error.code}]", file=sys.stderr)
    sys.exit(error.exit_code)


def _run_with_json(arguments: Sequence[str] | None) -> NoReturn:
    """Run a command with --json. An invalid command line is printed as JSON too."""
    from typer.exceptions import TyperException

    try:
        code = app(args=arguments, standalone_mode=False)
    except TyperException as error:
        message = getattr(error, "format_message", error.__str__)().rstrip(".")
        problem = Problem("cli.arguments_invalid", message, remedy="`toolkit COMMAND --help` lists every option.")
        print_problems([problem], ExitCode.INVALID)
        print(f"toolkit: {problem} [{problem.code}]", file=sys.stderr)
        sys.exit(ExitCode.INVALID)
    sys.exit(code if isinstance(code, int) else ExitCode.FINISHED)


def _open_closed_streams() -> None:
    """Open the null device for standard streams that are closed.

    Otherwise the first file that a command opens gets the stream's number, and what libraries print goes into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                # It gets the lowest free number, which is this one. Processes that are started need it too.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _check_environment(arguments: Sequence[str]) -> None:
    """Check that arguments are texts, and that the working directory exists.

    Raises:
        ArgumentError: an argument is empty, is not valid UTF-8, or has a NUL character.
        RunError: the working directory was removed.
    """
    for number, word in enumerate(arguments):
        if not word.strip():  # as a path, it would be the working directory
            place = f"argument {number + 1}" + (f", after {arguments[number - 1]}" if number else "")
            rule, remedy = "an argument must not be empty", "Remove it. It may be a shell variable without a value."
            raise ArgumentError("cli.argument_empty", rule, place=place, value=word, remedy=remedy)
        if "\0" in word or not _is_unicode(word):
            rule, remedy = "each argument must be UTF-8 text without NUL", "Correct the argument, or rename the file."
            raise ArgumentError("cli.argument_not_text", rule, value=word, remedy=remedy)
    try:
        Path.cwd()
    except OSError as error:
        rule, remedy = "the working directory must exist and be readable", "Change to another directory."
        raise RunError("run.no_working_directory", rule, value=error.strerror, remedy=remedy) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python decodes other bytes to surrogates
        return False
    return True


_INTERRUPTED = "toolkit: stopped by Ctrl-C before any work began [run.interrupted]"


def _end_if_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the process after a Ctrl-C that a library ignores, because it came inside its compiled code.

    While work is done, Ctrl-C raises no exception (``runfolder.StopRequest``).
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        print(_INTERRUPTED, file=sys.stderr, flush=True)
        os._exit(ExitCode.INTERRUPTED)
    sys.__unraisablehook__(unraisable)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its exit code.

    ``ExitCode`` has all exit codes. Any other exception than a ToolkitError is a bug and shows its traceback.

    Args:
        arguments: the command and its options. Default: those of the process.
    """
    from toolkit.runfolder.logs import hide_values_of_libraries

    _open_closed_streams()
    hide_values_of_libraries()
    hook, sys.unraisablehook = sys.unraisablehook, _end_if_interrupted
    try:
        _check_environment(sys.argv[1:] if arguments is None else arguments)
        if _wants_json(arguments):
            _run_with_json(arguments)
        app(args=arguments)
    except ToolkitError as error:
        _fail(error, arguments)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(ExitCode.FAILED)
    except _write_errors() as error:
        if rejected := path_error(error):
            _fail(rejected, arguments)
        if not _is_disk_full(error):
            raise
        rule = "the disk must have free space, within the quota and the limit of file sizes (ulimit -f)"
        remedy = "Finished work is kept. Free disk space, and run the same command again to resume."
        _fail(RunError("run.disk_full", rule, value=str(error), remedy=remedy), arguments)
    finally:
        sys.unraisablehook = hook
        hide_values_of_libraries()  # again, because typer replaces the hook that prints a traceback
        # The work is done. Libraries that clean up at exit would answer Ctrl-C with a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(ExitCode.FINISHED)
