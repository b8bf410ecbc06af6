"""Load custom code, a reward or a task, that a recipe names as ``file.py:name``.

The file runs with the rights of the user, as if it were started from a shell.
"""

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from toolkit.errors import Problem, ToolkitError
from toolkit.recipe.problems import nearest

USER_CODE = re.compile(r".+\.py:[A-Za-z_]\w*")
"""Pattern of ``file.py:name``."""


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


def load_user_code(entry: str, base: Path, kind: UserCode) -> object:
    """Return the object that ``file.py:name`` names. A relative path starts at ``base``, the recipe's folder.

    The file is compiled on every call, without a bytecode file, so that edits take effect.

    Raises:
        ToolkitError: made by ``kind.fail`` if the entry is malformed, the file is missing or raises an exception, or
            it does not define the name.
    """
    file, colon, name = entry.rpartition(":")
    if not (colon and file.endswith(".py") and name.isidentifier()):
        rule = f"{kind.label} must have the format file.py:{kind.what}"
        remedy = f'Write, for example, "{kind.example}".'
        raise kind.fail(Problem(f"{kind.area}.entry_malformed", rule, entry, remedy=remedy))
    path = (base / file).resolve()
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
