"""Splits of rated images by patient or image, stratified by rating level and modality.

A greedy assignment as in iterative stratification (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10), with two
differences. Whole groups are assigned, those with the rarest ratings first. Each goes to the split whose chi-squared
distance from its wanted numbers of ratings (by modality and level, by level, by modality, and in all) it lowers most.
Order among equals is a hash of seed and group, so the same ratings and seed give the same splits on every machine,
whatever the order of the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from toolkit.errors import DataError, Problem
from toolkit.imagegen.ratings.load import Ratings
from toolkit.imagegen.seeds import seed_of
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen

Stratum = tuple[str, int]
"""Modality and rating level. Empty: all modalities."""

ANY_LEVEL = -1


TRAINING = ("train", "judge_train")
"""Splits that a scorer is trained on."""
SELECTOR_SPLITS = ("train", "validation")
"""Splits of the selector and the policy, whose images a generator may be trained on."""


def split_ratings(recipe: Recipe, section: Imagegen, ratings: Ratings) -> Mapping[str, Ratings]:
    """Return the splits of a run. The same ratings give the same splits each time.

    Selector and policy have ``train`` and ``validation``, the judge ``judge_train`` and ``judge_validation``. No model
    is trained on ``test``.

    Raises:
        DataError: there are fewer groups than splits.
    """
    parts = partition(ratings, section.judge.fractions.by_split, recipe.run.seed)
    held = {"train": 1 - section.selector.validation, "validation": section.selector.validation}
    own = partition(parts["selector"], held, recipe.run.seed)
    judge = partition(parts["judge"], held, seed_of(recipe, "judge"))
    return {
        "train": own["train"],
        "validation": own["validation"],
        "judge_train": judge["train"],
        "judge_validation": judge["validation"],
        "test": parts["test"],
    }


def partition(ratings: Ratings, fractions: Mapping[str, float], seed: int) -> Mapping[str, Ratings]:
    """Divide rated images into splits. No patient and no image is in two of them.

    Args:
        ratings: the rated images.
        fractions: split -> fraction of the ratings, above 0. They are scaled to a sum of 1.
        seed: another seed gives other splits.

    Returns:
        The ratings of each split, with images in their original order.

    Raises:
        DataError: fewer groups than splits, so that one would be empty.
    """
    groups = _groups(ratings)
    if len(groups) < len(fractions):
        raise DataError(
            "imagegen.groups_too_few",
            f"a division into {len(fractions)} splits needs at least as many patients or images",
            place="imagegen.ratings",
            value=f"{len(groups)} groups",
            remedy="Add rated images.",
        )
    split_of = _assign(groups, fractions, seed)
    return {
        split: ratings.only([image for image in ratings.images if split_of[image.group] == split])
        for split in fractions
    }


def require_all_levels(splits: Mapping[str, Ratings], training: Sequence[str]) -> tuple[Problem, ...]:
    """Require every rating level in each training split, and return warnings about the other splits.

    Args:
        splits: the splits from ``partition``.
        training: names of the splits that a model is trained on.

    Raises:
        DataError: training splits lack levels. All of them are named.
    """
    lacking = {name: levels for name, ratings in splits.items() if (levels := _lacking(ratings))}
    broken = [f"{name} without {', '.join(levels)}" for name, levels in lacking.items() if name in training]
    if broken:
        raise DataError(
            "imagegen.training_levels_missing",
            "every training split must have every rating level of imagegen.rating_range",
            place="imagegen.ratings",
            value=", ".join(broken),
            remedy="Add images with these ratings, or remove the levels from imagegen.rating_range.",
        )
    rule = "the split has no rating of these levels, so its figures do not cover them"
    return tuple(
        Problem("imagegen.split_levels_missing", rule, f"imagegen.ratings, split {name}", ", ".join(levels))
        for name, levels in lacking.items()
    )


def _lacking(ratings: Ratings) -> list[str]:
    return [f"{value:g}" for value, n in zip(ratings.rating_range, ratings.level_counts(), strict=True) if not n]


def _groups(ratings: Ratings) -> Mapping[str, Counter[Stratum]]:
    """Group -> number of its ratings by stratum, by level, by modality, and in all."""
    groups: dict[str, Counter[Stratum]] = {}
    for image in ratings.images:
        counts = groups.setdefault(image.group, Counter())
        for level in image.levels:
            counts.update(((image.modality, level), ("", level), (image.modality, ANY_LEVEL), ("", ANY_LEVEL)))
    return groups


def _assign(groups: Mapping[str, Counter[Stratum]], fractions: Mapping[str, float], seed: int) -> Mapping[str, str]:
    totals: Counter[Stratum] = Counter()
    for counts in groups.values():
        totals.update(counts)
    scale = sum(fractions.values())
    wanted = {split: {key: n * part / scale for key, n in totals.items()} for split, part in fractions.items()}
    left = {split: dict(needs) for split, needs in wanted.items()}

    def rarest(group: str) -> tuple[int, bytes]:
        return min(totals[key] for key in groups[group]), _digest(seed, group)

    split_of: dict[str, str] = {}
    for group in sorted(groups, key=rarest):
        counts = groups[group]
        split = min(fractions, key=lambda name: _cost(counts, left[name], wanted[name]))
        split_of[group] = split
        for key, n in counts.items():
            left[split][key] -= n
    return _without_empty_splits(split_of, list(fractions))


def _cost(counts: Counter[Stratum], left: Mapping[Stratum, float], wanted: Mapping[Stratum, float]) -> float:
    """Return the growth of a split's chi-squared distance from its target counts if it gets these ratings."""
    return sum(((left[key] - n) ** 2 - left[key] ** 2) / wanted[key] for key, n in counts.items())


def _without_empty_splits(split_of: dict[str, str], splits: Sequence[str]) -> Mapping[str, str]:
    """Give each empty split a group of the split that has most groups."""
    for empty in [split for split in splits if split not in split_of.values()]:
        largest = Counter(split_of.values()).most_common(1)[0][0]
        split_of[next(group for group, split in split_of.items() if split == largest)] = empty
    return split_of


def _digest(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
