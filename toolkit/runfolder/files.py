"""Atomic text and JSON files, and JSON lines that survive an interrupted write."""

import csv
import glob
import io
import json
import math
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex, TextIO, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from toolkit.errors import RunError
from toolkit.identifiers import private_opener
from toolkit.runfolder.process import is_running

Value = TypeVar("Value")


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write ``text`` to ``path`` atomically: after a crash, the file has its old or its new content.

    A link is replaced, and its target stays unchanged.

    Args:
        path: the file. Its folder is created.
        text: the content.
        private: whether only the owner may read the file, because it has rows or ids of rows.

    Raises:
        RunError: a folder has the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _opened(temporary, "w", private=private) as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    replace_file(temporary, path)
    sync_folder(path.parent)


def remove_temporaries(path: Path) -> None:
    """Remove the temporary files of ``path`` that killed processes left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = left.name.removeprefix(f".{path.name}.").removesuffix(".partial")
        if process.isdecimal() and not is_running(int(process)):
            left.unlink(missing_ok=True)


def replace_file(temporary: Path, path: Path) -> None:
    """Give a complete temporary file its name. Raises RunError if a folder has the name."""
    try:
        temporary.replace(path)
    except OSError as error:
        if not path.is_dir() or path.is_symlink():
            raise
        temporary.unlink()
        rule, remedy = "must be a file", "Move the folder to another place."
        raise RunError("run.folder_instead_of_file", rule, place=path, value="a folder", remedy=remedy) from error


def _opened(path: Path, mode: str, *, private: bool) -> TextIO:
    opener = private_opener if private else None
    # pathlib has no opener, which sets the mode when the file is created, so that nobody else can ever read it.
    return cast(TextIO, open(path, mode, encoding="utf-8", newline="\n", opener=opener))


def write_json(path: Path, value: object, *, private: bool = False) -> None:
    """Write ``value`` as indented JSON, atomically.

    Dataclasses become objects, paths become text, NaN and infinities become null.

    Raises:
        TypeError: a value has no JSON type.
    """
    write_text(path, json_text(value), private=private)


def json_text(value: object) -> str:
    """Return ``value`` as ``write_json`` writes it."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or nested too deeply.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Return JSON as a value. Raises ValueError if it is not JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_saved(path: Path) -> Any:
    """Return the content of a JSON file that a command can do without. None: it is missing, corrupt or no file."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def from_json(kind: type[Value], value: object, *, other_types: bool = False) -> Value:
    """Return JSON as a dataclass. Fields of nested dataclasses are checked too.

    Args:
        kind: the dataclass.
        value: its fields, as JSON or as ``torch.load`` has them.
        other_types: accept fields of types that JSON has not, such as tensors.

    Raises:
        ValueError: a field is missing, unknown or of another type. The message has the path of the first such field.
    """
    # pydantic applies the configuration of the tuple to the dataclasses in it, which have none of their own.
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=other_types)
    adapter = TypeAdapter(tuple[kind], config=config)  # type: ignore[valid-type]
    try:
        (found,) = adapter.validate_python((value,))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(key) for key in first["loc"][1:])
        raise ValueError(f"{path}: {first['msg']}" if path else first["msg"]) from error
    return found


def flush_folder(folder: Path) -> None:
    """Write every file below ``folder`` to disk, so that a rename cannot precede the content."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def remove_tree(path: Path) -> None:
    """Remove a folder, a file, or a link without its target. Nothing is there: do nothing."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, because a rename is on disk only after its folder is flushed."""
    # Windows cannot open folders.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Open a hidden folder that becomes ``path`` if the block succeeds, and is removed otherwise.

    Args:
        path: the new folder. It must be absent or empty.

    Raises:
        OSError: ``path`` has files.
    """
    path = path.absolute()
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_lines(path: Path, values: Iterable[Mapping[str, object]], *, private: bool = False) -> None:
    """Write one JSON object per line, atomically as ``write_text`` does."""
    write_text(path, "".join(_line(value) for value in values), private=private)


def append_line(path: Path, value: Mapping[str, object], *, private: bool = False) -> None:
    """Append one JSON object as a line to ``path`` and flush it. NaN and infinities become null.

    ``private``: as in ``write_text``.
    """
    append_lines(path, [value], private=private)


def append_lines(path: Path, values: Iterable[Mapping[str, object]], *, private: bool = False) -> None:
    """Append one JSON object per line, as ``append_line`` does, and flush them together."""
    with _opened(path, "a", private=private) as handle:
        handle.write("".join(map(_line, values)))


def check_appendable(path: Path) -> None:
    """Check that a file of a run can grow. A line that is appended through a link would change a file of the user's.

    Raises:
        RunError: the path is a link, or exists and is not a file.
    """
    found = "a link" if path.is_symlink() else "not a file" if path.exists() and not path.is_file() else None
    if found is not None:
        rule = "must be a regular file or absent, because the run appends to it"
        remedy = "Move it to another place, and restore the file if you have a copy."
        raise RunError("run.file_not_regular", rule, place=path, value=found, remedy=remedy)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV with a line feed after each. A reader of CSV gets the same texts back."""
    text = io.StringIO()
    usual, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        # csv does not quote a carriage return alone, at which readers end the row.
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in row) else usual).writerow(row)
    return text.getvalue()


def read_lines(path: Path, keys: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the JSON objects in ``path``, without an unfinished last line. A missing file gives an empty list.

    Args:
        path: a file with one JSON object per line.
        keys: the keys that every object must have.

    Raises:
        RunError: a complete line is not a JSON object with ``keys``, or the file cannot be read.
    """
    try:
        complete = path.read_bytes().rpartition(b"\n")[0]
    except FileNotFoundError:
        return []
    except OSError as error:
        rule, value = "must be a file that can be read", error.strerror or str(error)
        raise RunError("run.file_unreadable", rule, place=path, value=value, remedy="Restore the file.") from error
    return [_object(line, path, number, keys) for number, line in enumerate(complete.split(b"\n"), 1) if line]


def _object(line: bytes, path: Path, number: int, keys: Collection[str]) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        having = f" with {' and '.join(keys)}" if keys else ""
        raise RunError(
            "run.line_damaged",
            f"the line must be a JSON object{having}",
            place=f"{path}, line {number}",
            value=f"{len(line)} bytes",  # not the text, which may be a patient's
            remedy="Restore the file, or remove the line.",
        )
    return found


def remove_partial_line(path: Path) -> int:
    """Remove an unfinished last line, which a crash during a write leaves. Return the number of bytes removed."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    extra = len(content) - (content.rfind(b"\n") + 1)
    if extra:
        os.truncate(path, len(content) - extra)
    return extra


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """Return ``value`` in JSON types. Scalars of NumPy and torch become numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, SupportsIndex):
        return int(value)
    if isinstance(value, SupportsFloat):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
