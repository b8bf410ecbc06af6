"""One protocol: ``hf`` (transformers and peft, any device) and ``unsloth`` (CUDA) train, a GGUF is only asked."""

from pathlib import Path

from toolkit.backends.base import Backend as Backend
from toolkit.errors import ModelError
from toolkit.llamacpp import is_gguf
from toolkit.recipe import Model


def choose_backend(model: Model, weights: Path | None = None) -> Backend:
    """The backend that the recipe names; ``auto`` is hf. A GGUF is asked by llama.cpp, whatever the recipe says.

    Raises:
        ModelError: the backend is not there yet.
    """
    if weights is not None and is_gguf(weights):
        from toolkit.backends.gguf import GgufBackend

        return GgufBackend()
    if model.backend == "unsloth":
        raise ModelError(
            "the unsloth backend is not built in this version",
            place="[model] backend",
            value=model.backend,
            remedy='Set backend = "hf" or leave it out.',
        )
    from toolkit.backends.hf import HfBackend

    return HfBackend()
