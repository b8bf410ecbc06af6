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

from toolkit.errors import warn
from toolkit.models.model_paths import model_source
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
                return _rejection(source, model.revision, model.trust_remote_code, size)
            except _NotAvailableError as error:
                _warn_once(source, str(error))
                return ""


class _NotAvailableError(Exception):
    """The processor is not on this machine."""


@lru_cache(maxsize=1 << 12)
def _rejection(source: str, revision: str | None, custom_code: bool, size: tuple[int, int]) -> str:
    processor = _processor(source, revision, custom_code)
    try:
        processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")
    except REJECTIONS as error:
        return (str(error) or type(error).__name__).splitlines()[0][:200]
    return ""


@lru_cache(maxsize=2)
def _processor(source: str, revision: str | None, custom_code: bool) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(
            source, revision=revision, trust_remote_code=custom_code, local_files_only=True
        )
    except (OSError, ValueError, ImportError, AttributeError, LookupError, TypeError) as error:
        raise _NotAvailableError((str(error) or type(error).__name__).splitlines()[0]) from error


@lru_cache(maxsize=8)
def _warn_once(source: str, reason: str) -> None:
    rule = f"the processor is not on this machine, so long strips and tiny images are not checked ({reason[:120]})"
    warn("images.sizes_not_checked", rule, place=source)
