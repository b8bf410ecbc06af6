"""Load a model's processor, with an error that names the damaged file."""

import re
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError
from toolkit.models.model_config import check_fields, read_object
from toolkit.models.model_paths import model_source
from toolkit.models.weight_files import check_regular
from toolkit.recipe import Model

PATTERNS = ("*config.json", "tokenizer.json", "chat_template.json", "special_tokens_map.json", "added_tokens.json")
"""JSON files that a processor reads. Each has an object."""

MAX_ADDED_TOKENS = 20_000
"""Maximum number of added tokens. Reading takes minutes for 300,000, and supported models have at most 6,415."""


def open_processor(model: Model, *, local: bool = False) -> Any:
    """Return the processor of a model, as in its files.

    Args:
        model: The model.
        local: Whether to use only files on this machine.

    Raises:
        ModelError: The processor is not available, or a file of it is damaged.
    """
    from transformers import AutoProcessor

    source = model_source(model)
    check_regular(Path(source))
    if (file := Path(source) / "processor_config.json").exists():
        check_fields(read_object(file, "model.processor_file"), file)
    _check_added_tokens(Path(source) / "tokenizer.json")
    try:
        processor = AutoProcessor.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code, local_files_only=local
        )
    except Exception as error:  # tokenizers raises Exception itself, and an image processor any error of its values.
        raise _unusable(source, error) from error
    if not hasattr(processor, "tokenizer"):  # transformers returns a tokenizer for a processor that it does not know
        raise _unusable(source, TypeError(f"{type(processor).__name__} is not a processor of images and text"))
    return processor


def _check_added_tokens(file: Path) -> None:
    if not file.is_file():
        return
    added = read_object(file, "model.processor_file").get("added_tokens")
    if isinstance(added, list) and len(added) > MAX_ADDED_TOKENS:
        raise ModelError(
            "model.too_many_added_tokens",
            f"a tokenizer must have at most {MAX_ADDED_TOKENS:,} added tokens",
            place=file,
            value=len(added),
            remedy="Copy or download the file again.",
        )


def model_not_found(source: str, error: Exception) -> ModelError:
    """Return the error for a model that is not available."""
    return ModelError(
        "model.not_found",
        "the model must be a folder or an available model on the Hub",
        place=f"[model] name = {source!r}",
        value=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
        remedy="Check the name. A gated model needs `hf auth login`. Offline, give the folder of a downloaded copy.",
    )


def _package(error: ImportError) -> str:
    """Return the package that an error of transformers names, or the module that could not be imported."""
    named = re.search(r"pip3? install (?:-U )?([\w.-]*\w)", str(error)) or re.search(r"`([\w.-]+)`", str(error))
    return named[1] if named else error.name or "the package that it names"


def _unusable(source: str, error: Exception) -> ModelError:
    if isinstance(error, ImportError):
        return ModelError(
            "model.library_missing",
            "the library that the model's processor needs must be installed",
            place=f"[model] name = {source!r}",
            value=" ".join(str(error).split())[:200],
            remedy=f"Install it: pip install {_package(error)}.",
        )
    folder = Path(source)
    if not folder.is_dir() and isinstance(error, OSError | ValueError):
        return model_not_found(source, error)
    for file in sorted(file for pattern in PATTERNS for file in folder.glob(pattern)):
        try:
            read_object(file, "model.processor_file")
        except ModelError as found:
            return found
    return ModelError(
        "model.processor_unusable",
        "the processor's files must be those of a processor that the installed transformers loads",
        place=f"[model] name = {source!r}",
        value=" ".join((str(error).strip() or type(error).__name__).split())[:300],
        remedy="Copy or download the files of the processor again.",
    )
