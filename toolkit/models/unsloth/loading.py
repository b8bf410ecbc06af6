"""Loading of a base model with Unsloth, and of the adapter that the run continues from."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from unsloth import FastVisionModel
from unsloth.models.loader_utils import get_model_name

from toolkit.errors import ModelError
from toolkit.models import lora as adapter
from toolkit.models.loading import model_not_found, model_too_large, show_downloads_only
from toolkit.models.unsloth.options import Loading, load_options
from toolkit.recipe import Recipe

log = logging.getLogger(__name__)

NEEDED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py")
"""Patterns of the repository files that loading needs."""


def load_model(recipe: Recipe, source: str, adapted: Path | None, loading: Loading) -> Any:
    """Return the model in ``source`` with the adapter in ``adapted``, if any.

    Unsloth loads an adapter together with the base that the adapter's configuration names. The result must not go
    through ``get_peft_model`` again. A copy of the configuration names the recipe's base instead.

    Raises:
        ModelError: Base or adapter are not available, or the adapter belongs to another base.
    """
    show_downloads_only()
    loading = replace(loading, exact=loading.exact or Path(source).is_dir())
    if adapted is None:
        return _load(recipe, source, source, loading)
    _check_same_base(adapted, source)
    with _with_base(adapted, _pinned(recipe, source)) as folder:
        # The folder already pins the revision, which is that of the base. Unsloth would apply it to the adapter.
        model = recipe.model.model_copy(update={"revision": None})
        pinned = replace(loading, exact=loading.exact or recipe.model.revision is not None)
        return _load(recipe.model_copy(update={"model": model}), str(folder), source, pinned)


def _load(recipe: Recipe, name: str, source: str, loading: Loading) -> Any:
    try:
        model, _ = FastVisionModel.from_pretrained(**load_options(recipe, name, loading))
    except torch.OutOfMemoryError as error:
        raise model_too_large(source) from error
    except (OSError, ValueError, RuntimeError, ImportError, NotImplementedError) as error:
        raise model_not_found(source, error) from error
    loaded = str(getattr(model.config, "_name_or_path", source))
    if loaded != source and not Path(loaded).is_dir():
        log.info("Unsloth loads %s instead of %s (set model.revision to keep the latter)", loaded, source)
    return model


def _pinned(recipe: Recipe, source: str) -> str:
    """Return the folder of the pinned revision. Unsloth would load an adapter's base from its newest revision."""
    if recipe.model.revision is None or Path(source).is_dir():
        return source
    try:
        return str(snapshot_download(source, revision=recipe.model.revision, allow_patterns=list(NEEDED)))
    except (OSError, ValueError) as error:
        raise model_not_found(source, error) from error


@contextmanager
def _with_base(adapted: Path, base: str) -> Iterator[Path]:
    """Yield a folder with a copy of the adapter whose configuration names ``base``."""
    with tempfile.TemporaryDirectory(prefix="toolkit-adapter-") as place:
        folder = Path(place)
        for file in adapted.glob("adapter_model*"):
            shutil.copy(file, folder / file.name)
        settings = json.loads((adapted / "adapter_config.json").read_text(encoding="utf-8"))
        settings |= {"base_model_name_or_path": base, "revision": None}
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        yield folder


def _check_same_base(adapted: Path, source: str) -> None:
    """Compare Hub names, with Unsloth's table of names. Folders are not compared, because they may have moved."""
    base = adapter.base_of(adapted)
    if base is None or any(Path(name).is_absolute() or Path(name).is_dir() for name in (base, source)):
        return
    names = {name.lower() for name in (source, *(get_model_name(source, load_in_4bit=bits) for bits in (True, False)))}
    if base.lower() not in names:
        raise ModelError(
            "model.adapter_of_another_base",
            "the adapter must belong to the recipe's model",
            place=adapted,
            value=base,
            remedy="Set model.name to the model that the adapter was trained on.",
        )
