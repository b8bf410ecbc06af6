"""Refreshing selector or policy in stage 2: passed images with low-rated anchors replayed, rolled back if it got worse.

Trained on passed images alone, a selector forgets what a bad image is and passes everything. Ratings below the passing
level are therefore replayed as anchors. Whether the refresh is kept is decided on held-out ratings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from toolkit.errors import DataError
from toolkit.imagegen.figure import Figure
from toolkit.imagegen.rated import RatedImages, as_floats


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """``anchor_fraction`` of the training rows are low-rated anchors. ``tolerance`` is how far agreement may drop."""

    anchor_fraction: float = 0.5
    tolerance: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RefreshOutcome:
    """Held-out agreement before and after, and whether the refreshed parameters are kept."""

    before: Figure
    after: Figure
    kept: bool


def with_anchors(
    passed: RatedImages, ratings: RatedImages, passing_level: int, settings: RefreshSettings
) -> RatedImages:
    """Return passed images and ratings below ``passing_level``, in the fraction that the settings say.

    Each low level has equally many anchors. Anchors are drawn without replacement as far as they reach.

    Raises:
        DataError: A level below ``passing_level`` has no rating.
    """
    if not 0 < settings.anchor_fraction < 1:
        raise ValueError(f"anchor_fraction must be above 0 and below 1, got {settings.anchor_fraction}")
    count = round(len(passed) * settings.anchor_fraction / (1 - settings.anchor_fraction))
    generator = torch.Generator().manual_seed(settings.seed)
    rows: list[int] = []
    for level in range(passing_level):
        members = (ratings.levels_N == level).nonzero()[:, 0]
        if not len(members):
            raise DataError(
                "imagegen.anchor_levels_missing",
                "low-rated anchors must have ratings of every level that does not pass",
                place="ratings",
                value=f"no rating of rank {level}",
                remedy="Rate more images, or leave the selector as it is in stage 2.",
            )
        wanted = count // passing_level + (level < count % passing_level)
        rows.extend(_drawn(members.tolist(), wanted, generator))
    return joined(passed, ratings.take(rows))


def joined(first: RatedImages, second: RatedImages) -> RatedImages:
    """Return the rows of both, with images as floats."""
    return RatedImages(
        torch.cat([as_floats(first.images_NCHW), as_floats(second.images_NCHW)]),
        torch.cat([first.levels_N, second.levels_N]),
        torch.cat([first.weights_N, second.weights_N]),
        first.prompts + second.prompts,
        first.modalities + second.modalities,
        first.groups + second.groups,
    )


def decide(before: Figure, after: Figure, settings: RefreshSettings) -> RefreshOutcome:
    """Keep a refresh if held-out agreement (Spearman's correlation or AUROC) did not drop by more than the tolerance.

    A refresh after which agreement is undefined is not kept.
    """
    kept = after.value is not None and (before.value is None or after.value >= before.value - settings.tolerance)
    return RefreshOutcome(before, after, kept)


def _drawn(rows: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Return ``count`` rows of shuffled passes over all rows."""
    found: list[int] = []
    while len(found) < count:
        found.extend(rows[index] for index in torch.randperm(len(rows), generator=generator).tolist())
    return found[:count]
