"""How many bytes a form will take, from the headers of the weights it is made of: nothing is loaded for it."""

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
    """Weights on disk: how many numbers they hold and how many bytes those take."""

    values: int
    bytes: int


def form_bytes(form: str, weights: Path, model: Model, quants: Sequence[str] = ()) -> int | None:
    """Bytes that exporting ``weights`` in ``form`` will write; None: the base's weights are not on this disk yet.

    Args:
        form: adapter, merged or gguf; for gguf a copy in 16 bits counts too; its merged weights are a form themselves.
        weights: the run's.
        model: the recipe's.
        quants: of gguf, the quantisations that are asked for.
    """
    own = weights_size(weights)
    if form == "adapter" or own is None:
        return own.bytes if own else None
    whole = base_size(model) if is_adapter(weights) else own
    if whole is None:
        return None
    merged = {"16bit": 2 * whole.values, "32bit": 4 * whole.values}.get(precision_of(model, mergeable=True))
    if form == "merged":
        return whole.bytes if merged is None else merged
    return max_bytes(whole.values, quants)


def base_size(model: Model) -> Size | None:
    """The base's weights in their folder or in the Hub's cache; None: they are not there."""
    source = model_source(model)
    if Path(source).is_dir():
        return weights_size(Path(source))
    try:
        return weights_size(Path(snapshot_download(source, revision=model.revision, local_files_only=True)))
    except LocalEntryNotFoundError:
        return None


def weights_size(folder: Path) -> Size | None:
    """The safetensors in a folder; None: it has none."""
    values, size = 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as opened:
            values += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        size += file.stat().st_size
    return Size(values, size) if size else None
