"""One prefill for each distinct prompt of a batch, whose cache all its completions use.

``generate`` repeats a prompt for each of its completions, and computes the same keys and values for each. The wrapper
around the model's ``forward`` computes distinct rows once, and then repeats their cache and logits. Positions and masks
are those that ``generate`` has prepared for all rows, so that nothing is computed differently.

Rows are equal if their tokens, masks and images are equal, so a batch may have groups of any size. The model's own
``forward`` runs as usual in training and in decoding. It also does so with a static cache, with unknown arguments, and
for a model whose images cannot be assigned to rows. If rows have equal tokens, such a call is counted and logged
(``usage.note_bypass``).
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from toolkit.models.vision_cache import is_random, replace_forward
from toolkit.runfolder.usage import note_bypass

_ROW_FIELDS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids"})
"""Tensors with an axis for rows."""
_IMAGE_FIELDS = ("pixel_values", "image_grid_thw")
"""Tensors with the images of all rows, one after another."""
_KNOWN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
_SHARED_FIELDS = frozenset({"cache_position", "past_key_values"})
"""Values that are the same for all rows."""
NOT_ASSIGNED = "the images cannot be assigned to rows"
"""Reason of a bypass."""
_Fields = Mapping[str, Any]


class SharedPrefill:
    """The wrapper of one model, in use from its creation until ``remove``.

    Args:
        model: A model of transformers, without an adapter's wrapper.

    Attributes:
        rows: The number of rows of the prefills.
        computed: The number of rows that were computed.
    """

    def __init__(self, model: Any) -> None:
        self.rows = self.computed = 0
        self._model, self._forward = model, model.forward
        replace_forward(model, self._call).shared_prefill = self

    def remove(self) -> None:
        """Restore the model's own ``forward``."""
        self._model.forward = self._forward

    def _call(self, fields: dict[str, Any]) -> Any:
        if not _is_prefill(fields):
            return self._forward(**fields)
        reason = _unsupported(fields) or ("dropout is active" if is_random(self._model) else "")
        images = None if reason else images_by_row(self._model.config, fields)
        if images is None:
            if has_equal_rows(fields["input_ids"]):
                note_bypass("shared prefill", reason or NOT_ASSIGNED)
            return self._forward(**fields)
        first_of_row = first_equal_rows(fields, images)
        firsts = sorted(set(first_of_row))
        rows = len(first_of_row)
        self.rows += rows
        self.computed += len(firsts)
        if len(firsts) == rows:
            return self._forward(**fields)
        output = self._forward(**select_rows(fields, images, firsts))
        places = torch.tensor([firsts.index(first) for first in first_of_row], device=output.logits.device)
        fields["past_key_values"].batch_select_indices(places)
        output.logits = output.logits[places]
        _repeat_offsets(self._model, places, len(firsts))
        return output


def prefill_once(model: Any) -> SharedPrefill:
    """Compute each distinct prompt of a ``generate`` call once, from now on."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    earlier: SharedPrefill | None = getattr(whole.forward, "shared_prefill", None)
    return earlier or SharedPrefill(whole)


def _is_prefill(fields: _Fields) -> bool:
    """Return whether the call fills an empty cache with the prompts of more than one row."""
    ids, cache = fields.get("input_ids"), fields.get("past_key_values")
    if torch.is_grad_enabled() or ids is None or cache is None or len(ids) < 2:
        return False
    # A prompt has several tokens. A compiled forward must not branch on the length of its static cache.
    if type(cache) is not DynamicCache and (ids.shape[1] < 2 or torch.compiler.is_compiling()):
        return False
    return not (isinstance(cache, Cache) and cache.get_seq_length())


def _unsupported(fields: _Fields) -> str:
    """Return which cache or argument has another form than the wrapper knows. Empty: none has."""
    cache = fields["past_key_values"]
    if type(cache) is not DynamicCache:
        return f"the cache is a {type(cache).__name__}"
    layers = {type(layer).__name__ for layer in cache.layers if type(layer) not in _KNOWN_LAYERS}
    if layers:
        return f"the cache has a {', '.join(sorted(layers))}"
    requested = [name for name in ("output_hidden_states", "output_attentions") if fields.get(name)]
    unknown = requested or sorted(name for name, value in fields.items() if not _is_known(name, value))
    return f"unknown argument {', '.join(unknown)}" if unknown else ""


def has_equal_rows(tokens_RT: torch.Tensor) -> bool:
    """Return whether two rows have equal tokens, so that their prompt may be computed twice."""
    return len(torch.unique(tokens_RT, dim=0)) < len(tokens_RT)


def _is_known(name: str, value: Any) -> bool:
    """Return whether an argument can be given for some rows. Masks of four axes and mappings of masks cannot."""
    if name in _ROW_FIELDS:
        return value is None or (isinstance(value, torch.Tensor) and value.ndim <= 3)
    known = name in _SHARED_FIELDS or name in _IMAGE_FIELDS
    return known or value is None or isinstance(value, bool | int | float | str)


def images_by_row(config: Any, fields: _Fields) -> list[slice] | None:
    """Return the images of each row, as a slice of all images. None: they cannot be assigned.

    The number of image tokens in a row decides. The tokens of an image follow from the grid, or are the same for all
    images.

    Args:
        config: The model's configuration.
        fields: The model's arguments by name, with ``input_ids`` of shape (rows, tokens).
    """
    ids, pixels, grid = fields["input_ids"], fields.get("pixel_values"), fields.get("image_grid_thw")
    if pixels is None:
        return [slice(0, 0)] * len(ids) if grid is None else None
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if token is None or not isinstance(pixels, torch.Tensor):
        return None
    tokens_of_row = (ids == token).sum(1).tolist()
    if grid is not None:
        merged = int(getattr(config.vision_config, "spatial_merge_size", 1)) ** 2
        tokens_of_image = [patches // merged for patches in grid.prod(-1).tolist()]
    else:
        tokens, rest = divmod(sum(tokens_of_row), len(pixels)) if len(pixels) else (0, 1)
        if rest or not tokens:  # without image tokens in the prompts, each of them would get no image
            return None
        tokens_of_image = [tokens] * len(pixels)
    starts = {tokens: number for number, tokens in enumerate(accumulate(tokens_of_image, initial=0))}
    ends = list(accumulate(tokens_of_row, initial=0))
    if ends[-1] != sum(tokens_of_image) or not starts.keys() >= set(ends):
        return None
    return [slice(starts[first], starts[end]) for first, end in pairwise(ends)]


def first_equal_rows(fields: _Fields, images: Sequence[slice]) -> list[int]:
    """Return, for each row, the first row with the same tokens, masks and images."""
    rows = len(fields["input_ids"])
    tensors = [_by_row(fields[name], rows) for name in sorted(_ROW_FIELDS) if fields.get(name) is not None]
    columns = [tensor.flatten(1).tolist() for tensor in tensors if len(tensor) == rows]
    keys = [tuple(tuple(column[row]) for column in columns) for row in range(rows)]
    firsts: dict[tuple[tuple[float, ...], ...], list[int]] = {}
    found = []
    for row, key in enumerate(keys):
        known = firsts.setdefault(key, [])
        same = next((other for other in known if _same_images(fields, images[row], images[other])), None)
        if same is None:
            known.append(row)
        found.append(row if same is None else same)
    return found


def _same_images(fields: _Fields, one: slice, other: slice) -> bool:
    grid = fields.get("image_grid_thw")
    if grid is not None and not torch.equal(grid[one], grid[other]):
        return False
    return fields.get("pixel_values") is None or torch.equal(_pixels(fields, one), _pixels(fields, other))


def _pixels(fields: _Fields, images: slice) -> torch.Tensor:
    """Return the pixels of some images. Towers that get a grid have a row of pixels for each patch."""
    pixels, grid = fields["pixel_values"], fields.get("image_grid_thw")
    if grid is None:
        found: torch.Tensor = pixels[images]
        return found
    first, last = (int(grid[:end].prod(-1).sum()) for end in (images.start, images.stop))
    patches: torch.Tensor = pixels[first:last]
    return patches


def _by_row(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a tensor with the axis of rows first. Positions on several axes (Qwen) have it second."""
    return value.transpose(0, 1) if value.ndim == 3 and value.shape[1] == rows else value


def select_rows(fields: _Fields, images: Sequence[slice], firsts: Sequence[int]) -> dict[str, Any]:
    """Return the arguments for some of the rows: ``firsts``, with their ``images``."""
    selected, rows = dict(fields), len(images)
    places = torch.tensor(firsts, device=fields["input_ids"].device)
    for name in _ROW_FIELDS & fields.keys():
        value = fields[name]
        if isinstance(value, torch.Tensor):
            several = value.ndim == 3 and value.shape[1] == rows
            selected[name] = value[:, places] if several else value[places] if len(value) == rows else value
    if fields.get("pixel_values") is not None:
        selected["pixel_values"] = torch.cat([_pixels(fields, images[first]) for first in firsts])
    if fields.get("image_grid_thw") is not None:
        selected["image_grid_thw"] = torch.cat([fields["image_grid_thw"][images[first]] for first in firsts])
    return selected


def _repeat_offsets(model: Any, places: torch.Tensor, computed: int) -> None:
    """Repeat the offsets between tokens and positions that Qwen's models keep between calls of ``forward``."""
    inner: Any = getattr(model, "model", None)
    offsets = getattr(inner, "rope_deltas", None)
    if isinstance(offsets, torch.Tensor) and len(offsets) == computed:
        inner.rope_deltas = offsets[places]
