"""Files that are whole or absent: atomic JSON, and JSON lines whose torn last line is cut off."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex


def write_text(path: Path, text: str) -> None:
    """Put ``text`` into ``path`` so that a crash leaves the old file or the new one, on disk, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """``value`` as indented JSON, written as ``write_text`` does; paths become text, NaN and infinities null.

    Raises:
        TypeError: something in it is nothing that JSON has.
    """
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def flush_folder(folder: Path) -> None:
    """Have every file below ``folder`` on disk, so that a rename cannot come before its content."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def write_lines(path: Path, values: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, atomically as ``write_text`` does."""
    write_text(path, "".join(_line(value) for value in values))


def append_line(path: Path, value: Mapping[str, object]) -> None:
    """One JSON object as one more line of ``path``, flushed; NaN and infinities become null."""
    with path.open("a", encoding="utf-8", newline="\n") as handle:
        handle.write(_line(value))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in ``path``, without a last line that was not finished; none where there is no file."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.split(b"\n") if line]


def cut_torn_line(path: Path) -> int:
    """Cut off what stands after the last line end (a crash came while it was written); gives the bytes removed."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    torn = len(content) - (content.rfind(b"\n") + 1)
    if torn:
        os.truncate(path, len(content) - torn)
    return torn


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """``value`` in the types that JSON has; numpy's and torch's numbers are numbers too."""
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


def _sync_folder(folder: Path) -> None:
    # The rename itself is on disk only once its folder is; Windows cannot open one.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
