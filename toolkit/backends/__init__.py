"""One protocol, two ways to train: ``hf`` (transformers and peft, any device) and ``unsloth`` (CUDA)."""

from toolkit.backends.base import Backend as Backend
from toolkit.errors import ModelError
from toolkit.recipe import Model


def choose_backend(model: Model) -> Backend:
    """The backend that the recipe names; ``auto`` is hf.

    Raises:
        ModelError: the backend is not there yet.
    """
    if model.backend == "unsloth":
        raise ModelError(
            "the unsloth backend is not built in this version",
            place="[model] backend",
            value=model.backend,
            remedy='Set backend = "hf" or leave it out.',
        )
    from toolkit.backends.hf import HfBackend

    return HfBackend()
