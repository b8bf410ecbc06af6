"""Rated images as tensors, and what every training of a scorer checks of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class RatedImages:
    """Ratings with their images, one row per rating.

    Attributes:
        images_NCHW: Images with 1 or 3 channels, in uint8 or in [0, 1]. ``as_floats`` gives both as floats.
        levels_N: Rank of each rating in the range of ratings, 0 for the lowest.
        weights_N: Weight of each rating, above 0.
        prompts: The prompt of each image.
        modalities: The modality of each image.
        groups: The patient or image of each rating. Bootstrap samples draw whole groups.
    """

    images_NCHW: Tensor
    levels_N: Tensor
    weights_N: Tensor
    prompts: tuple[str, ...]
    modalities: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        n = len(self.images_NCHW)
        sizes = [len(each) for each in (self.levels_N, self.weights_N, self.prompts, self.modalities, self.groups)]
        if any(size != n for size in sizes):
            raise ValueError(f"{n} images, but levels, weights, prompts, modalities and groups number {sizes}")
        if self.levels_N.is_floating_point():
            raise ValueError(f"levels must be integer ranks, got {self.levels_N.dtype}")
        as_bytes = self.images_NCHW.dtype == torch.uint8
        if n and not as_bytes and not (float(self.images_NCHW.min()) >= 0 and float(self.images_NCHW.max()) <= 1):
            raise ValueError("images must be in [0, 1]")
        if n and not (torch.isfinite(self.weights_N).all() and float(self.weights_N.min()) > 0):
            raise ValueError("weights must be finite and above 0")

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def take(self, rows: Sequence[int]) -> "RatedImages":
        """Return some of the rows, in the given order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        chosen = index.tolist()
        return RatedImages(
            self.images_NCHW[index],
            self.levels_N[index],
            self.weights_N[index],
            tuple(self.prompts[row] for row in chosen),
            tuple(self.modalities[row] for row in chosen),
            tuple(self.groups[row] for row in chosen),
        )


def as_floats(images_NCHW: Tensor) -> Tensor:
    """Return images in [0, 1] of images in uint8. Call it for a batch at a time: floats take four times the memory."""
    return images_NCHW.float() / 255 if images_NCHW.dtype == torch.uint8 else images_NCHW


def check_training_levels(levels_N: Tensor, n_levels: int) -> None:
    """Raise DataError if a level has no row to learn from, or a row has a level outside the range."""
    if n_levels < 2:
        raise ValueError(f"there must be 2 levels or more, got {n_levels}")
    present = set(levels_N.tolist())
    if outside := present - set(range(n_levels)):
        raise ValueError(f"levels must be from 0 to {n_levels - 1}, got {sorted(outside)}")
    if missing := sorted(set(range(n_levels)) - present):
        raise DataError(
            "imagegen.fitting_levels_missing",
            "the training split must have a rating of every level",
            place="ratings",
            value=f"no rating of rank {', '.join(map(str, missing))} (0 is the lowest of {n_levels})",
            remedy="Rate more images, or narrow rating_range.",
        )
