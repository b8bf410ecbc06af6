"""Loading a Transformers model, or one half of a CLIP or SigLIP model, with clear errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from toolkit.errors import ModelError


def load_half(name: str, revision: str | None, half: str, what: str) -> tuple[nn.Module, Any]:
    """Return a model with its config. Of a model whose config has ``half``, only that half is loaded.

    Raises:
        ModelError: There is no such model, it is pickled, or it lacks parameters.
    """
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        config = getattr(config, half, config)
        # The log would list each parameter of the half that is left out.
        with _quiet("transformers.modeling_utils"):
            model, found = AutoModel.from_pretrained(
                name, config=config, revision=revision, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise ModelError(
            "imagegen.encoder_not_loadable",
            f"the encoder must be a Transformers {what} model in safetensors files",
            place=name,
            remedy=f"Correct the name, or download it first. Transformers says: {str(error).splitlines()[0]}",
        ) from error
    if found["missing_keys"]:
        raise ModelError(
            "imagegen.encoder_parameters_missing",
            "the encoder's files must have all of its parameters",
            place=name,
            value=sorted(found["missing_keys"])[:3],
        )
    return model, config


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
