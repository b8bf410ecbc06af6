"""Load custom code, a reward or a task, that a recipe names as ``file.py:name``.

The file runs with the rights of the user, as if it were started from a shell.
"""

import hashlib
import importlib.util
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar

from toolkit.errors import Problem, ToolkitError
from toolkit.recipe.problems import nearest

USER_CODE = re.compile(r".+\.py:[A-Za-z_]\w*")
"""Pattern of ``file.py:name``."""

AGAIN = 1.0
"""Seconds after which a call that ignored the end of its time is interrupted again."""

Result = TypeVar("Result")

NOT_RUN = ".not_run"
"""End of the code of the error inside of ``without_user_code``."""

_RUNS = ContextVar("user_code_runs", default=True)


@dataclass(frozen=True, slots=True)
class UserCode:
    """One kind of custom code.

    Attributes:
        area: the first part of its error codes, such as ``rewards``.
        what: the kind of object, such as ``function``.
        label: the kind of code in a sentence, such as ``a custom reward``.
        example: example of an entry in a recipe.
        fail: problem -> error to raise.
        belongs: object of the file -> whether it may be suggested.
    """

    area: str
    what: str
    label: str
    example: str
    fail: Callable[[Problem], ToolkitError]
    belongs: Callable[[object], bool]


@contextmanager
def without_user_code() -> Iterator[None]:
    """Run no custom code in the block. A command that only reads run folders may read those of others."""
    token = _RUNS.set(False)
    try:
        yield
    finally:
        _RUNS.reset(token)


def load_user_code(entry: str, base: Path, kind: UserCode) -> object:
    """Return the object that ``file.py:name`` names. A relative path starts at ``base``, the recipe's folder.

    The file is compiled on every call, without a bytecode file, so that edits take effect.

    Raises:
        ToolkitError: made by ``kind.fail`` if the entry is malformed, the file is missing or raises an exception, or
            it does not define the name. Also inside of ``without_user_code``.
    """
    file, colon, name = entry.rpartition(":")
    if not (colon and file.endswith(".py") and name.isidentifier()):
        rule = f"{kind.label} must have the format file.py:{kind.what}"
        remedy = f'Write, for example, "{kind.example}".'
        raise kind.fail(Problem(f"{kind.area}.entry_malformed", rule, entry, remedy=remedy))
    path = (base / file).resolve()
    if not _RUNS.get():
        rule, remedy = "the custom code is not run by a command that only reads runs", "Trust the file first."
        raise kind.fail(Problem(f"{kind.area}.not_run", rule, str(path), remedy=remedy))
    if not path.is_file():
        remedy = _suggest(file, _python_files(path.parent))
        raise kind.fail(Problem(f"{kind.area}.file_missing", "the file must exist", str(path), remedy=remedy))
    module = _run(path, kind)
    if not hasattr(module, name):
        rule = f"the file must define the {kind.what} {name}"
        known = [key for key, value in vars(module).items() if kind.belongs(value) and not key.startswith("_")]
        remedy = _suggest(name, known)
        raise kind.fail(Problem(f"{kind.area}.{kind.what}_missing", rule, str(path), remedy=remedy))
    found: object = getattr(module, name)
    return found


def raised_at(error: BaseException) -> str:
    """Return ``file:line`` of the statement that raised the exception, in the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"


class TimeLimitExceeded(Exception):
    """A call took longer than its time limit.

    Attributes:
        place: ``file:line`` of the statement of the function's file that ran at that time.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class _Interruption(BaseException):
    """Ends a call from inside. It is no Exception, so that ``except Exception`` in the user's code lets it pass."""


def call_within(seconds: float, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function of the user that must return within a time.

    In the main thread of a POSIX system, a timer signal interrupts the call, even inside ``time.sleep``, a request or a
    regular expression. It cannot interrupt other compiled code that neither returns to Python nor checks for signals.

    In other threads, on Windows, and if the program uses the timer signal itself, the call runs in a thread of its own.
    After the time it is left behind, because Python cannot end a thread, and it ends with the process.

    Args:
        seconds: The time limit, above 0.
        function: The function.
        args: Its arguments.

    Raises:
        TimeLimitExceeded: The function did not return in time.
    """
    if _is_timer_free():
        return _call_with_timer(seconds, function, args)
    return _call_in_thread(seconds, function, args)


def _is_timer_free() -> bool:
    """Return whether this thread can receive the timer signal, and nothing else uses it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    unused = signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN)
    return unused and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def _call_with_timer(seconds: float, function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    is_running, place = True, ""

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal place
        if is_running:
            place = place or _place_of(frame, function)
            raise _Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        result = function(*args)
        is_running = False
    except _Interruption:
        is_running = False
    finally:
        is_running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if place:  # also if the function caught the interruption and returned a value
        raise TimeLimitExceeded(place)
    return result


def _call_in_thread(seconds: float, function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    results, errors = list[Result](), list[BaseException]()

    def work() -> None:
        try:
            results.append(function(*args))
        except BaseException as error:  # noqa: BLE001 (raised again in the calling thread)
            errors.append(error)

    thread = threading.Thread(target=work, name=getattr(function, "__name__", "call_within"), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeLimitExceeded(_place_of(sys._current_frames().get(thread.ident or 0), function))
    if errors:
        raise errors[0]
    return results[0]


def _place_of(frame: FrameType | None, function: Callable[..., Any]) -> str:
    """Return ``file:line`` of the innermost frame in the file of a function, otherwise of the innermost frame."""
    if frame is None:
        return "?"
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = [one for one, _ in traceback.walk_stack(frame)]
    found = next((one for one in frames if one.f_code.co_filename == own), frame)
    return f"{found.f_code.co_filename}:{found.f_lineno}"


def _run(path: Path, kind: UserCode) -> ModuleType:
    name = f"toolkit_custom_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        rule, remedy = "the file must be a Python module", "Name a .py file."
        raise kind.fail(Problem(f"{kind.area}.file_not_python", rule, str(path), remedy=remedy))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        exec(loader.source_to_code(path.read_bytes(), str(path)), module.__dict__)
    except SyntaxError as error:
        rule, place = "the file must be valid Python", f"{path}:{error.lineno}"
        raise kind.fail(
            Problem(f"{kind.area}.file_syntax_invalid", rule, place, error.msg, "Correct the line.")
        ) from error
    except (Exception, SystemExit) as error:  # Any exception of the user's file is reported with its line.
        rule = "the file must load without an exception"
        problem = Problem(f"{kind.area}.file_raised", rule, raised_at(error), error, "Correct the file.")
        raise kind.fail(problem) from error
    return module


def _python_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py")) if folder.is_dir() else []


def _suggest(name: str, known: list[str]) -> str:
    """Return ``Did you mean …?``, or the complete list."""
    if suggestion := nearest(name, known):
        return suggestion
    return f"Choose one of: {', '.join(known)}." if known else "Add it: nothing similar exists."
