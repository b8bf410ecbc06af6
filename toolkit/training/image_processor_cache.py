"""The processor of a GRPO trainer, which processes each image once per optimizer step.

TRL runs the processor on every completion of a group and again for the log-probabilities. With G generations, the same
image would be resized and normalised 2 G times. ``CachedImageProcessor`` caches the result by the keys of the images.

The images of a prompt are processed together, as in evaluation: LLaVA-OneVision cuts an image into tiles only if it is
alone in its prompt, and Idefics3 has an axis for prompts.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from PIL import Image
from transformers.utils.hub import PushToHubMixin

from toolkit.models.chat_template import adds_bos, render_prompt
from toolkit.models.messages import conversation
from toolkit.models.prompts import IMAGE_KEY

MAX_BYTES = 2 * 2**30
"""Limit of the cache, beside its capacity. A processed image of 896 x 896 in float32 has 9.6 MB."""
_Fields = Mapping[str, Any]
"""Options or output of an image processor by name. transformers has no type for them."""


def rollout_processor(processor: Any, capacity: int) -> Any:
    """Return a copy that caches the last ``capacity`` images and adds no BOS if the chat template has one.

    TRL tokenizes rendered prompts a second time. The tokenizer would prepend its BOS again, which would shift the mask
    of image tokens by one position.
    """
    cached = copy.copy(processor)
    cached.image_processor = CachedImageProcessor(processor.image_processor, capacity)
    if not adds_bos(processor, render_prompt(processor, conversation("", 0))):
        cached.tokenizer = copy.deepcopy(processor.tokenizer)
        cached.tokenizer.add_bos_token = False
    return cached


class CachedImageProcessor(PushToHubMixin):
    """Behaves like the image processor that it wraps. ``processed`` and ``cache_hits`` count images.

    Images without a key are not cached. Neither are results that cannot be concatenated, because their shapes differ
    beyond the first axis.

    A list of images is read as prompts of one image. Llama 4's processor passes the images of all prompts so.
    """

    def __init__(self, inner: Any, capacity: int) -> None:
        self.inner, self.capacity = inner, capacity
        self.processed = self.cache_hits = 0
        self._cache: OrderedDict[tuple[tuple[str, ...], str], _Fields] = OrderedDict()
        self._bytes = self._images = 0
        self._blocks: list[int] | None = None
        self._nested = False

    def blocks(self, images: Sequence[int]) -> list[int] | None:
        """Return the number of entries in ``pixel_values`` of each prompt of the last call. None: unknown.

        Args:
            images: The number of images of each prompt.
        """
        if self._blocks is None or self._nested:
            return self._blocks
        ends = [0, *accumulate(images)]
        return [sum(self._blocks[start:stop]) for start, stop in pairwise(ends)]

    def __call__(self, images: Any, **options: Any) -> Any:
        """Return the wrapped processor's output for an image, a list of images, or a list of lists."""
        rows, self._blocks = _rows(images), None
        listed = [image for row in rows for image in row]
        if not all(isinstance(image, Image.Image) and IMAGE_KEY in image.info for image in listed):
            return self._process(images, len(listed), options)
        self._nested = _is_nested(images)
        parts = [self._one(row, [row] if self._nested else row, options) for row in rows if row]
        counts = iter([len(part["pixel_values"]) for part in parts])
        self._blocks = [next(counts) if row else 0 for row in rows]
        if _stackable(parts) and (all(rows) or not any(_may_have_row_axis(part) for part in parts)):
            joined = {name: _join([part[name] for part in parts]) for name in parts[0]}
            return type(self._last)(joined)
        whole = self._process(images, len(listed), options)
        if len(whole["pixel_values"]) != sum(self._blocks):
            self._blocks = [1] * len(rows) if len(whole["pixel_values"]) == len(rows) else None
        return whole

    def _one(self, row: Sequence[Image.Image], images: Any, options: _Fields) -> _Fields:
        # TRL requests lists before it generates and tensors before it trains. Tensors serve both.
        options = {**options, "return_tensors": "pt"}
        key = (
            tuple(image.info[IMAGE_KEY] for image in row),
            repr(sorted(options.items(), key=lambda item: item[0])),
        )
        if key in self._cache:
            self.cache_hits += len(row)
            self._cache.move_to_end(key)
            return self._cache[key]
        self._last = self._process(images, len(row), options)
        self._cache[key] = part = dict(self._last)
        self._bytes += _bytes(part)
        self._images += len(row)
        while len(self._cache) > 1 and (self._images > self.capacity or self._bytes > MAX_BYTES):
            (keys, _), evicted = self._cache.popitem(last=False)
            self._bytes -= _bytes(evicted)
            self._images -= len(keys)
        return part

    def _process(self, images: Any, count: int, options: _Fields) -> Any:
        self.processed += count
        return self.inner(images, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return the wrapped processor's settings, so that the saved processor equals the original."""
        return dict(self.inner.to_dict())

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while unpickling or copying, the attribute does not exist yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CachedImageProcessor":
        return self


def _bytes(part: _Fields) -> int:
    return sum(value.nbytes for value in part.values() if isinstance(value, torch.Tensor))


def _rows(images: Any) -> list[Any]:
    """Return the images of each prompt."""
    if not isinstance(images, list | tuple):
        return [[images]]
    return list(images) if _is_nested(images) else [[image] for image in images]


def _is_nested(images: Any) -> bool:
    return isinstance(images, list | tuple) and all(isinstance(row, list | tuple) for row in images)


def _may_have_row_axis(part: _Fields) -> bool:
    """Return whether pixels may have an axis for prompts, as in Idefics3. A prompt without images would be left out."""
    pixels = part.get("pixel_values")
    return isinstance(pixels, torch.Tensor) and pixels.ndim > 4


def _stackable(parts: list[_Fields]) -> bool:
    """Return whether every field is a tensor or a list that can be concatenated."""
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
