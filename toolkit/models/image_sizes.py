"""Sizes of images that a model's processor rejects, such as a long strip, found before training.

The processor itself decides: it gets a black image of the size. This module imports transformers only for a size that
might be rejected.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

from PIL import Image

from toolkit.errors import ModelError, warn
from toolkit.models.model_paths import model_source
from toolkit.models.processor import open_processor
from toolkit.recipe import Model

log = logging.getLogger(__name__)

SAFE_RATIO, SAFE_SIDE = 4, 28
"""Every processor accepts an image whose longer side is at most ``SAFE_RATIO`` times its shorter one, and whose shorter
side has at least ``SAFE_SIDE`` pixels: tiles and patches are smaller."""

REJECTIONS = (ValueError, ArithmeticError, RuntimeError, TypeError, LookupError)
"""Exceptions of image processors for a size that they do not support."""

_LOCK = Lock()


@dataclass(frozen=True, slots=True)
class ProcessorSizes:
    """The sizes that the processor of a model accepts. Picklable."""

    model: Model

    def __call__(self, size: tuple[int, int]) -> str:
        """Return why the processor rejects an image of (width, height), or an empty text.

        It is also empty if the processor is not on this machine, with a warning.
        """
        if max(size) <= SAFE_RATIO * min(size) and min(size) >= SAFE_SIDE:
            return ""
        source, model = model_source(self.model), self.model
        with _LOCK:  # threads of a scan would import and load the processor several times
            try:
                return _rejection(model, size)
            except ModelError as error:
                _warn_once(source, str(error.value))
                return ""


@lru_cache(maxsize=1 << 12)
def _rejection(model: Model, size: tuple[int, int]) -> str:
    processor = _processor(model)
    try:
        processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")
    except REJECTIONS as error:
        return (str(error) or type(error).__name__).splitlines()[0][:200]
    return ""


@lru_cache(maxsize=2)
def _processor(model: Model) -> Any:
    return open_processor(model, local=True)


@lru_cache(maxsize=8)
def _warn_once(source: str, reason: str) -> None:
    rule = f"the processor is not on this machine, so long strips and tiny images are not checked ({reason[:120]})"
    warn("images.sizes_not_checked", rule, place=source)
