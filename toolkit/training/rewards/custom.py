"""Custom rewards: functions ``(sample, answer) -> float | None`` in a Python file next to the recipe.

The file is the user's own program. It runs with the user's permissions, as if it were started from a shell.
"""

import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from toolkit.data.sample import Reward
from toolkit.errors import RewardError

_SHAPE = "def my_reward(sample, answer): return 0.0 to 1.0, or None if it does not apply"


def custom_name(entry: str) -> str:
    """Return the name of the reward in weights and logs, which is the function's name.

    >>> custom_name("my_rewards.py:mentions_side")
    'mentions_side'
    """
    return entry.rpartition(":")[2]


def load_custom(entry: str, base: Path) -> Reward:
    """Return the function that ``file.py:function`` names.

    The file is compiled each time without a bytecode cache, so that every edit takes effect.

    Args:
        entry: ``file.py:function``.
        base: The recipe's folder, which relative paths start from.

    Raises:
        RewardError: The entry has another format, the file is missing or raises an error (with its line), or the
            function is missing or does not take two arguments.
    """
    file, colon, name = entry.rpartition(":")
    if not (colon and file.endswith(".py") and name.isidentifier()):
        raise RewardError(
            "rewards.entry_malformed",
            "a custom reward must have the format file.py:function",
            place=entry,
            remedy='Write, for example, "my_rewards.py:my_reward".',
        )
    path = (base / file).resolve()
    if not path.is_file():
        raise RewardError(
            "rewards.file_missing", "the file must exist", place=path, remedy=_nearest(file, _python_files(path.parent))
        )
    module = _run(path)
    if not hasattr(module, name):
        raise RewardError(
            "rewards.function_missing",
            f"the file must define the function {name}",
            place=path,
            remedy=_nearest(name, _functions(module)),
        )
    return _checked(getattr(module, name), f"{path}:{name}")


def raised_at(error: BaseException) -> str:
    """Return ``file:line`` of the statement that raised, in the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"


def _run(path: Path) -> ModuleType:
    name = f"toolkit_custom_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    if spec is None:
        raise RewardError("rewards.file_not_python", "the file must be a Python module", place=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up their module by name
    try:
        exec(loader.source_to_code(path.read_bytes(), str(path)), module.__dict__)
    except SyntaxError as error:
        raise RewardError(
            "rewards.file_syntax_invalid",
            "the file must be valid Python",
            place=f"{path}:{error.lineno}",
            value=error.msg,
        ) from error
    except Exception as error:  # any error of the user's file is reported with its line
        raise RewardError(
            "rewards.file_raised",
            "the file must load without an exception",
            place=raised_at(error),
            value=error,
        ) from error
    return module


def _checked(function: object, place: str) -> Reward:
    if not callable(function):
        raise RewardError(
            "rewards.not_a_function",
            "a reward must be a function",
            place=place,
            value=function,
            remedy=f"Write: {_SHAPE}.",
        )
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise RewardError(
            "rewards.signature_wrong",
            "a reward must take two positional arguments, sample and answer",
            place=place,
            value=str(signature),
            remedy=f"Write: {_SHAPE}.",
        ) from error
    return function


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]


def _python_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py")) if folder.is_dir() else []


def _nearest(name: str, known: list[str]) -> str:
    """Return ``Did you mean …?``, or the list of known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Choose one of: {', '.join(known)}." if known else "Add it: nothing similar exists."
