"""A batch cut by its rows, each with its own pictures, however the model's family lays pixels out."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch

from toolkit.errors import TrainingError

PICTURES = "num_images"
"""How many pictures each row has: TRL's name, which SFT's batches carry too."""

_BY_PICTURE = ("image_grid_thw", "image_position_ids")
_NOT_KNOWN = ("spatial_shapes", "num_tiles", "pixel_values_videos", "video_grid_thw")


def rows_of(batch: Mapping[str, Any]) -> int:
    """How many rows an SFT or a GRPO batch has."""
    return len(batch["input_ids"] if "input_ids" in batch else batch["prompt_ids"])


def cut(batch: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """The batch in parts of at most ``most`` rows, in order and of sizes that differ by one at most.

    Padding stays as it is. What has no rows, such as a step's number of tokens, is in every part.

    Raises:
        TrainingError: the pixels of the rows cannot be told apart.
    """
    rows = rows_of(batch)
    count = -(-rows // most)
    ends = [number * rows // count for number in range(count + 1)]
    return [piece(batch, *pair) for pair in pairwise(ends)]


def piece(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Rows ``start`` to ``stop`` of a batch; raises as ``cut``."""
    rows = rows_of(batch)
    if (start, stop) == (0, rows):
        return dict(batch)
    found = {}
    for name, value in batch.items():
        if name in _NOT_KNOWN and value is not None:
            raise _inseparable(name)
        if name != "pixel_values" and name not in _BY_PICTURE:
            found[name] = value[start:stop] if _has_rows(name, value, rows) else value
    return found | _pixels(batch, start, stop)


def _has_rows(name: str, value: Any, rows: int) -> bool:
    if isinstance(value, list | tuple) or (torch.is_tensor(value) and value.ndim):
        if len(value) != rows:
            raise _inseparable(name)
        return True
    return False


def _pixels(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The part's pixels: nothing where its rows have no picture."""
    pixels, counts = batch.get("pixel_values"), batch.get(PICTURES)
    if pixels is None:
        return {}
    if counts is None:
        raise _inseparable("pixel_values")
    before = [0, *accumulate(counts)]
    pictures = slice(before[start], before[stop])
    if pictures.start == pictures.stop:
        return {}
    if isinstance(pixels, list):  # GRPO's samples, each with its own block; see ``policy_trainer``
        return {"pixel_values": pixels[start:stop]}
    return {
        "pixel_values": pixels[_blocks(batch, pixels, before[-1], pictures)],
        **{name: batch[name][pictures] for name in _BY_PICTURE if batch.get(name) is not None},
    }


def _blocks(batch: Mapping[str, Any], pixels: Any, total: int, pictures: slice) -> slice:
    """Where the pictures' pixels lie: Qwen's patches follow each other without an axis for pictures."""
    grid = batch.get("image_grid_thw")
    patches: Sequence[int] = [1] * total if grid is None else grid.prod(-1).tolist()
    before = [0, *accumulate(patches)]
    if before[-1] != len(pixels):
        raise _inseparable("pixel_values")
    return slice(before[pictures.start], before[pictures.stop])


def _inseparable(name: str) -> TrainingError:
    return TrainingError(
        "a batch that is too large for the memory can be cut only where each row's pixels are known",
        place=name,
        remedy="Set batch_size (SFT) or micro_batch (GRPO) to 1, or lower images.max_side.",
    )
