"""The choice of a backend, and the import of Unsloth before other libraries."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from toolkit.errors import ModelError, warn
from toolkit.models.backend import Backend
from toolkit.models.llamacpp import is_gguf
from toolkit.recipe import Model, Recipe
from toolkit.runfolder import world_size

HF, UNSLOTH = "hf", "unsloth"


def choose_backend(model: Model, weights: Path | None = None) -> Backend:
    """Return the backend of the recipe. ``auto`` is resolved by ``backend_name``. A GGUF always uses llama.cpp.

    ``auto`` is hf if transformers was imported before Unsloth, because Unsloth must be imported first.

    Raises:
        ModelError: The recipe requires Unsloth, which is not available on this machine or in this process.
    """
    if weights is not None and is_gguf(weights):
        from toolkit.models.gguf import GgufBackend

        return GgufBackend()
    name = backend_name(model)
    if name == UNSLOTH and (model.backend == UNSLOTH or UNSLOTH in sys.modules):
        from toolkit.models.unsloth.backend import UnslothBackend

        return UnslothBackend()
    from toolkit.models.hf import HfBackend

    return HfBackend()


def backend_name(model: Model) -> str:
    """Return ``hf`` or ``unsloth``. ``auto`` is Unsloth for LoRA on a CUDA device if it is installed.

    ``auto`` is hf for the tiny model, several processes (``accelerate launch``) and 32-bit training.

    Raises:
        ModelError: The recipe requires Unsloth, but a CUDA device or the package is missing.
    """
    if model.backend == UNSLOTH:
        _check_unsloth_available()
        return UNSLOTH
    if model.backend == HF or model.name == "tiny" or model.tuning != "lora" or model.precision == "32bit":
        return HF
    return UNSLOTH if world_size() == 1 and _is_installed() and _has_cuda() else HF


def preload(recipe: Recipe, folder: Path, weights: Path | None = None) -> None:
    """Import Unsloth before transformers, trl and peft if the recipe uses it.

    Call it when the run folder exists, before any stage is imported. With ``auto``, Unsloth is not imported if it would
    deviate from the recipe, and ``choose_backend`` then returns hf.

    Args:
        recipe: The recipe with the backend.
        folder: The run folder, which stores the modules that Unsloth compiles.
        weights: Weights to evaluate instead of the run's own. Nothing is imported for a GGUF.

    Raises:
        ModelError: As ``backend_name``, or transformers was imported before, or the recipe requires Unsloth and has
            settings that it does not support.
    """
    if weights is not None and is_gguf(weights):
        return
    if backend_name(recipe.model) != UNSLOTH:
        return
    from toolkit.models.unsloth.limits import check_supported, unsupported_reasons
    from toolkit.models.unsloth.start import start

    if recipe.model.backend == "auto" and (reasons := unsupported_reasons(recipe)):
        warn(
            "model.backend_hf_chosen",
            f"Unsloth cannot train this recipe, so the backend is hf: {'; '.join(reasons)}",
            place="[model] backend",
            value=recipe.model.backend,
        )
        return
    check_supported(recipe)
    start(folder)


def _check_unsloth_available() -> None:
    lacking = "the package unsloth" if not _is_installed() else "a CUDA device" if not _has_cuda() else None
    if lacking:
        raise ModelError(
            "model.unsloth_unavailable",
            f'backend = "unsloth" needs {lacking}, which is missing',
            place="[model] backend",
            value=UNSLOTH,
            remedy='Set backend = "hf", which trains on any device, or "auto", which uses what is available.',
        )


def _is_installed() -> bool:
    try:
        version(UNSLOTH)
    except PackageNotFoundError:
        return False
    return True


def _has_cuda() -> bool:
    import torch

    return torch.cuda.device_count() > 0  # queries the driver's library, so it creates no CUDA context
