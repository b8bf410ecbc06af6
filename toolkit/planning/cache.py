"""What plans counted, kept in the cache under a key of all that it was counted from.

Counting needs transformers and torch, which take five seconds to import; a plan that finds everything here imports
neither. Nothing here can be out of date: another text, picture size, processor file, library version or line of the
code that counts is another key.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import xxhash
from pydantic import TypeAdapter, ValidationError

from toolkit.runfolder import write_text
from toolkit.runfolder.cache import cache_folder

CODE = (
    "models/chat_template.py",
    "models/lengths.py",
    "models/module_names.py",
    "planning/architecture.py",
    "planning/counting.py",
    "planning/prequantised.py",
    "planning/tokens.py",
)
"""Files of the package that decide what is counted."""
LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "jinja2", "pillow")
WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".onnx"})
"""Files of a model's folder that say nothing of its tokens, and are large."""

Counted = TypeVar("Counted")


def remembered(
    kind: type[Counted], facts: object, count: Callable[[], Counted], good: Callable[[Counted], bool] = lambda _: True
) -> Counted:
    """What ``count`` gives, from the cache where the same was counted before.

    Args:
        kind: a dataclass, whose fields are kept as JSON.
        facts: everything that the result depends on beside code and libraries, as JSON takes it.
        count: its errors are not kept. A cache that cannot be read or written is as good as none.
        good: whether a result may be kept.
    """
    key = xxhash.xxh3_128_hexdigest(json.dumps([_code(), facts], sort_keys=True, default=str).encode())
    file = cache_folder() / "plans" / f"{kind.__name__.lower()}-{key}.json"
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        counted = count()
    if good(counted):
        with suppress(OSError, ValueError):  # the latter: a text with half a character
            write_text(file, adapter.dump_json(counted).decode())
    return counted


def folder_facts(folder: Path) -> list[tuple[str, str]]:
    """Name and hash of each file in a model's folder that is not weights."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix not in WEIGHTS)
    return [(file.name, _hash([file])) for file in files]


@cache
def _code() -> list[str]:
    package = Path(__file__).parent.parent
    return [_hash(package / name for name in CODE), *(f"{library} {_version(library)}" for library in LIBRARIES)]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _hash(files: Iterable[Path]) -> str:
    found = xxhash.xxh3_128()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()
