"""The expert ratings of a plan: usable rows, splits, rating levels, and the prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolkit.data import RowCount
from toolkit.errors import DataError, ToolkitError
from toolkit.imagegen.ratings.experts import expert_weights
from toolkit.imagegen.ratings.load import Ratings, load_ratings
from toolkit.imagegen.ratings.splits import TRAINING, require_all_levels, split_ratings
from toolkit.planning.findings import PlanFinding, from_error, warning
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import SYNTHETIC_MODALITIES

PLACE = "[imagegen] ratings"


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """Images and ratings of a split, and its ratings of each level from the worst."""

    images: int
    ratings: int
    levels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RatingsFacts:
    """The ratings of a recipe.

    Attributes:
        rows: rows that were read.
        images: rated images with a usable rating.
        dropped: rows that cannot be used, by reason.
        splits: split -> its counts. For synthetic ratings they follow from the fractions.
        prompts: distinct prompts of ratings and recipe. Empty for synthetic ratings.
        modalities: distinct modalities of the images.
        synthetic: whether the run generates images and ratings when it begins.
    """

    rows: int
    images: int
    dropped: tuple[RowCount, ...]
    splits: Mapping[str, SplitFacts]
    prompts: tuple[str, ...] = ()
    modalities: int = 0
    synthetic: bool = False

    def images_of(self, *splits: str) -> int:
        """Return the images of some splits."""
        return sum(self.splits[name].images for name in splits)

    def ratings_of(self, *splits: str) -> int:
        """Return the ratings of some splits."""
        return sum(self.splits[name].ratings for name in splits)


def inspect_ratings(recipe: Recipe, section: Imagegen) -> tuple[RatingsFacts | None, list[PlanFinding]]:
    """Return the facts and the findings about the ratings. None: they cannot be read."""
    if section.synthetic is not None:
        return _synthetic(section), []
    try:
        ratings = load_ratings(section)
    except ToolkitError as error:
        return None, [from_error(error, PLACE)]
    findings = [*_dropped(ratings)]
    try:
        splits = split_ratings(recipe, section, ratings)
    except DataError as error:
        return None, [*findings, from_error(error, PLACE)]
    for check in (_levels, _weights):
        try:
            findings += check(section, splits)
        except DataError as error:
            findings.append(from_error(error, PLACE))
    own = [prompt for prompts in section.prompts.values() for prompt in prompts]
    prompts = tuple(dict.fromkeys([*own, *(image.prompt for image in ratings.images)]))
    modalities = len({image.modality for image in ratings.images})
    facts = {name: _facts(split) for name, split in splits.items()}
    return RatingsFacts(ratings.rows, len(ratings.images), ratings.dropped, facts, prompts, modalities), findings


def _levels(section: Imagegen, splits: Mapping[str, Ratings]) -> list[PlanFinding]:
    return [warning(lacking) for lacking in require_all_levels(splits, TRAINING)]


def _weights(section: Imagegen, splits: Mapping[str, Ratings]) -> list[PlanFinding]:
    expert_weights(section, splits["train"])
    return []


def _dropped(ratings: Ratings) -> Iterator[PlanFinding]:
    for one in ratings.dropped:
        yield warning(one.notice("cannot be used"))


def _synthetic(section: Imagegen) -> RatingsFacts:
    """Return the counts of synthetic ratings that follow from the fractions."""
    settings, keys = section.synthetic, section.judge.fractions
    if settings is None:
        raise ValueError("the recipe must have [imagegen.synthetic]")
    held = section.selector.validation
    fractions = {
        "train": keys.selector * (1 - held),
        "validation": keys.selector * held,
        "judge_train": keys.judge * (1 - held),
        "judge_validation": keys.judge * held,
        "test": keys.test,
    }
    sizes = {name: round(settings.images * part) for name, part in fractions.items()}
    splits = {name: SplitFacts(size, size * settings.raters_per_image) for name, size in sizes.items()}
    rows = settings.images * settings.raters_per_image
    return RatingsFacts(rows, settings.images, (), splits, modalities=len(SYNTHETIC_MODALITIES), synthetic=True)


def _facts(ratings: Ratings) -> SplitFacts:
    return SplitFacts(len(ratings.images), ratings.count, ratings.level_counts())
