"""Estimate the size of a format from the headers of its source weights, without loading them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open

from toolkit.models.llamacpp import max_bytes
from toolkit.models.loading import precision_of
from toolkit.models.lora import is_adapter
from toolkit.models.model_paths import model_source
from toolkit.recipe import Model


@dataclass(frozen=True, slots=True)
class Size:
    """The number of parameters on disk, and their size in bytes."""

    values: int
    bytes: int


def format_bytes(name: str, weights: Path, model: Model, quants: Sequence[str] = ()) -> int | None:
    """Return the size of an export in bytes. None: the base weights are not on this disk yet.

    Args:
        name: adapter, merged or gguf. gguf includes a temporary copy in 16 bits, but not the merged weights.
        weights: the run's trained weights.
        model: the section [model] of the recipe.
        quants: GGUF quantizations.
    """
    own = weights_size(weights)
    if name == "adapter" or own is None:
        return own.bytes if own else None
    whole = base_size(model) if is_adapter(weights) else own
    if whole is None:
        return None
    merged = {"16bit": 2 * whole.values, "32bit": 4 * whole.values}.get(precision_of(model, mergeable=True))
    if name == "merged":
        return whole.bytes if merged is None else merged
    return max_bytes(whole.values, quants)


def base_size(model: Model) -> Size | None:
    """Return the size of the base weights in their folder or the Hub cache, or None if they are missing."""
    source = model_source(model)
    if Path(source).is_dir():
        return weights_size(Path(source))
    try:
        return weights_size(Path(snapshot_download(source, revision=model.revision, local_files_only=True)))
    except LocalEntryNotFoundError:
        return None


def weights_size(folder: Path) -> Size | None:
    """Return the size of the safetensors files in a folder, or None if there are none."""
    values, size = 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            values += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        size += file.stat().st_size
    return Size(values, size) if size else None
