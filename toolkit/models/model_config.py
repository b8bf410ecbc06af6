"""Validation of a model's JSON files before a library reads them. No model library is imported."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError

MAX_BYTES = 64 * 2**20
"""Maximum size of a JSON file. The largest tokenizer.json of a supported model has 34 MB."""
MAX_LAYERS = 256
"""Maximum number of layers. A model is built layer by layer, even without memory for its parameters."""
MAX_EXPERTS = 1024
"""Maximum number of experts of a layer."""
MAX_SIZE = 2**24
"""Maximum of other sizes and numbers. The largest vocabulary of a supported model has 262,208 tokens."""
MAX_IMAGE_TOKENS = 2**17
"""Maximum number of placeholders of an image, which a processor writes into every prompt."""
LIMITS = (
    ("image_seq_length", MAX_IMAGE_TOKENS),
    ("layers", MAX_LAYERS),
    ("depth", MAX_LAYERS),
    ("experts", MAX_EXPERTS),
)
"""Ends of the names of fields with a number of modules, and their maximum."""
SIZED = ("_size", "_dim", "_heads", "_channels", "_labels", "_tokens_per_image", "_embeddings")
"""Ends of the names of fields with a size."""
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Fields with the attention implementation. transformers would download a name with a slash and run it."""
MAX_DEPTH = 8
"""Maximum nesting of a configuration that is checked. The configurations of supported models have 3 levels."""


def read_configuration(file: Path) -> Mapping[str, Any]:
    """Return the fields of a config.json.

    Raises:
        ModelError: The file is not a JSON object, or a size in it is out of range.
    """
    fields = read_object(file, "model.config")
    check_fields(fields, file)
    return fields


def read_object(file: Path, code: str) -> Mapping[str, Any]:
    """Return the JSON object in a file.

    Args:
        file: The file.
        code: Beginning of the code of an error, such as ``model.config``.

    Raises:
        ModelError: The file is not a JSON object.
    """
    remedy = "Copy or download the file again."
    try:
        if not file.is_file():  # opening a named pipe would wait forever
            raise OSError("no regular file")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise OSError(f"{size:,} bytes")
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        rule = "the file must be readable JSON"
        raise ModelError(f"{code}_not_json", rule, place=file, value=str(error)[:200], remedy=remedy) from error
    if not isinstance(fields, Mapping):
        rule = "the file must contain a JSON object"
        raise ModelError(f"{code}_not_object", rule, place=file, value=type(fields).__name__, remedy=remedy)
    return fields


def check_fields(fields: Mapping[str, Any], file: Path) -> None:
    """Raise ModelError if a size in a configuration is out of range, or a field names other code or weights."""
    for name, value, path in _walk(fields):
        if name in ATTENTION and "/" in str(value):
            raise ModelError(
                "model.config_names_kernel",
                "the configuration must not name a kernel of the Hub, because it would run code",
                place=f"{file}: {path}",
                value=value,
                remedy="Remove the field, and set model.attention.",
            )
        sized = MAX_SIZE if name.endswith(SIZED) else None
        most = next((limit for end, limit in LIMITS if name.endswith(end)), sized)
        if most is not None and isinstance(value, int | float) and not 0 <= value <= most:
            raise ModelError(
                "model.config_value_out_of_range",
                f"the field must be from 0 to {most:,}",
                place=f"{file}: {path}",
                value=value,
                remedy="Copy or download the file again.",
            )
    if (weights := fields.get("transformers_weights")) is not None:
        raise ModelError(
            "model.weights_renamed",
            "the configuration must not name another file of weights than model.safetensors",
            place=f"{file}: transformers_weights",
            value=weights,
            remedy="Remove the field, and rename the file to model.safetensors.",
        )


def _walk(fields: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, Any, str]]:
    """Yield the name, value and path of all fields, without those in lists."""
    for name, value in fields.items():
        yield name, value, f"{path}{name}"
        if isinstance(value, Mapping) and depth < MAX_DEPTH:
            yield from _walk(value, f"{path}{name}.", depth + 1)
