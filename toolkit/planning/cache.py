"""Cache of the counts of plans. The key is a hash of everything that a count depends on.

Counting imports transformers and torch, which takes five seconds. A plan whose counts are cached imports neither. An
entry cannot be outdated: different texts, image sizes, processor files, library versions or counting code give another
key.
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

from toolkit.models import (
    chat_template,
    earlier_turns,
    families,
    image_tokens,
    lengths,
    messages,
    model_paths,
    prompts,
    template_check,
    template_trial,
)
from toolkit.runfolder import write_text
from toolkit.runfolder.cache import cache_folder

_MODULES = (
    *(chat_template, earlier_turns, families, image_tokens, lengths, messages, model_paths, prompts),
    *(template_check, template_trial),
)
CODE = (
    *(Path(str(module.__file__)) for module in _MODULES),
    *(Path(__file__).with_name(name) for name in ("architecture.py", "tokens.py")),
)
"""Source files that decide the counts."""
LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "jinja2", "pillow")
WEIGHTS = frozenset({".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".onnx"})
"""Suffixes of weight files, which are large and do not affect tokens."""

Counted = TypeVar("Counted")


def cached_count(
    kind: type[Counted], facts: object, count: Callable[[], Counted], good: Callable[[Counted], bool] = lambda _: True
) -> Counted:
    """Return the result of ``count``, from the cache if the same facts were counted before.

    Args:
        kind: a dataclass. Its fields are stored as JSON.
        facts: everything that the result depends on besides code and libraries, as JSON values.
        count: counts. Its errors are not cached. If the cache cannot be read or written, it is not used.
        good: whether a result may be cached.
    """
    found = find_cached(kind, facts)
    if found is not None:
        return found
    counted = count()
    if good(counted):
        with suppress(OSError, ValueError):  # Lone surrogates raise ValueError.
            write_text(_file(kind, facts), TypeAdapter(kind).dump_json(counted).decode(), private=True)
    return counted


def find_cached(kind: type[Counted], facts: object) -> Counted | None:
    """Return the cached result of these facts, or None. See ``cached_count``."""
    try:
        return TypeAdapter(kind).validate_json(_file(kind, facts).read_bytes())
    except (OSError, ValidationError):
        return None


def _file(kind: type[object], facts: object) -> Path:
    key = xxhash.xxh3_128_hexdigest(json.dumps([_code(), facts], sort_keys=True, default=str).encode())
    return cache_folder() / "plans" / f"{kind.__name__.lower()}-{key}.json"


def hash_processor_files(folder: Path) -> list[tuple[str, str]]:
    """Return name and hash of each file in a model folder, except weight files."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix not in WEIGHTS)
    return [(file.name, _hash([file])) for file in files]


@cache
def _code() -> list[str]:
    return [_hash(CODE), *(f"{library} {_version(library)}" for library in LIBRARIES)]


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
