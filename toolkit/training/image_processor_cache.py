"""An image processor that works on each picture once, however many completions share it.

TRL runs the processor on every completion of a group and again for the log-probabilities: with G generations the same
picture is resized and normalised 2 G times. This wrapper remembers the result by the picture's key.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from transformers.utils.hub import PushToHubMixin

from toolkit.models.prompts import IMAGE_KEY

MOST_BYTES = 2 * 2**30
"""Of processed pictures that are remembered; one of 896 x 896 in float32 has 9.6 MB."""


def with_image_cache(processor: Any, capacity: int) -> Any:
    """A shallow copy of the processor whose image processor remembers ``capacity`` pictures, at most ``MOST_BYTES``."""
    twin = copy.copy(processor)
    twin.image_processor = CachedImageProcessor(processor.image_processor, capacity)
    return twin


class CachedImageProcessor(PushToHubMixin):
    """Behaves as the image processor that it wraps; ``processed`` and ``remembered`` count pictures.

    A picture without a key, or a processor whose result for one picture cannot be laid beside another's (shapes that
    differ beyond the first axis), goes through the wrapped processor as it is.
    """

    def __init__(self, inner: Any, capacity: int) -> None:
        self.inner, self.capacity = inner, capacity
        self.processed = self.cache_hits = 0
        self._memory: OrderedDict[tuple[str, str], Mapping[str, Any]] = OrderedDict()
        self._bytes = 0

    def __call__(self, images: Any, **options: Any) -> Any:
        """The wrapped processor's output for these pictures (a picture, a list, or a list of lists)."""
        flat = _flatten(images)
        if not all(isinstance(image, Image.Image) and IMAGE_KEY in image.info for image in flat):
            return self._whole(images, len(flat), options)
        parts = [self._one(image, options) for image in flat]
        if (_several_in_a_row(images) and any(_has_row_axis(part) for part in parts)) or not _stackable(parts):
            return self._whole(images, len(flat), options)
        joined = {name: _join([part[name] for part in parts]) for name in parts[0]}
        return type(self._last)(joined)

    def _one(self, image: Image.Image, options: dict[str, Any]) -> Mapping[str, Any]:
        # TRL asks for lists before it generates and for tensors before it trains; tensors serve both.
        options = {**options, "return_tensors": "pt"}
        key = (image.info[IMAGE_KEY], repr(sorted(options.items(), key=lambda item: item[0])))
        if key in self._memory:
            self.cache_hits += 1
            self._memory.move_to_end(key)
            return self._memory[key]
        self._last = self._whole([image], 1, options)
        self._memory[key] = part = dict(self._last)
        self._bytes += _bytes(part)
        while len(self._memory) > self.capacity or (self._bytes > MOST_BYTES and len(self._memory) > 1):
            _, gone = self._memory.popitem(last=False)
            self._bytes -= _bytes(gone)
        return part

    def _whole(self, images: Any, count: int, options: dict[str, Any]) -> Any:
        self.processed += count
        return self.inner(images, **options)

    def to_dict(self) -> dict[str, Any]:
        """The wrapped processor's settings, so that a saved processor is the original one."""
        return dict(self.inner.to_dict())

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while unpickling or copying there is nothing to ask yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CachedImageProcessor":
        return self


def _bytes(part: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in part.values() if isinstance(value, torch.Tensor))


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flatten(part)]
    return [images]


def _several_in_a_row(images: Any) -> bool:
    return isinstance(images, list | tuple) and any(isinstance(row, list | tuple) and len(row) > 1 for row in images)


def _has_row_axis(part: Mapping[str, Any]) -> bool:
    """Idefics and SmolVLM lay pixels out as rows x pictures x channels x height x width."""
    pixels = part.get("pixel_values")
    return isinstance(pixels, torch.Tensor) and pixels.ndim == 5


def _stackable(parts: list[Mapping[str, Any]]) -> bool:
    """Whether every field of the parts is a tensor or list that can be laid end to end."""
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, torch.Tensor):
            if len({value.shape[1:] for value in values}) > 1:
                return False
        elif not isinstance(first, list):
            return False
    return True


def _join(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    return [item for value in values for item in value]
