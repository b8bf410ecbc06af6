"""Which backend a model gets, and what must be imported before anything else because of it."""

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
    """The backend that the recipe names; ``auto`` as ``backend_name`` says. A GGUF is asked by llama.cpp in any case.

    ``auto`` stays with hf where another program has imported transformers before: Unsloth must come first.

    Raises:
        ModelError: the recipe asks for Unsloth, and this machine or this process cannot have it.
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
    """``hf`` or ``unsloth``. ``auto`` is Unsloth for LoRA on a CUDA device where it is installed, and not for ``tiny``.

    With ``auto``, several processes (`accelerate launch`) and 32 bits stay with hf, which does both.

    Raises:
        ModelError: the recipe asks for Unsloth, and there is no CUDA device or no such package.
    """
    if model.backend == UNSLOTH:
        _refuse_missing()
        return UNSLOTH
    if model.backend == HF or model.name == "tiny" or model.tuning != "lora" or model.precision == "32bit":
        return HF
    return UNSLOTH if world_size() == 1 and _is_installed() and _has_cuda() else HF


def preload(recipe: Recipe, folder: Path, weights: Path | None = None) -> None:
    """Import Unsloth before transformers, trl and peft where the recipe will use it; else do nothing.

    To be called once the run folder is there, before any stage is imported. Where Unsloth would do something else than
    the recipe says, ``auto`` leaves it alone, and with it hf is what ``choose_backend`` gives.

    Args:
        recipe: says which backend.
        folder: the run folder; what Unsloth compiles is kept in it.
        weights: what will be asked instead of the run's own; nothing is imported for a GGUF.

    Raises:
        ModelError: as ``backend_name``; something imported transformers before; or the recipe names Unsloth and asks
            for what it cannot do.
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


def _refuse_missing() -> None:
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

    return torch.cuda.device_count() > 0  # asks the driver's library, and so starts no CUDA context
