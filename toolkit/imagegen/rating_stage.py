"""The stage ``ratings``: read, scan, divide and weight the ratings, and count everything that is left out."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.data import Dropped
from toolkit.errors import DataError, Problem
from toolkit.imagegen.agreement import Agreement, agreement
from toolkit.imagegen.images import image_stores, scan_images
from toolkit.imagegen.oracle import network_scores
from toolkit.imagegen.partition import partition, require_all_levels
from toolkit.imagegen.rated import RatedImages
from toolkit.imagegen.ratings import RatedImage, Ratings, load_ratings
from toolkit.imagegen.settings import seed_of
from toolkit.imagegen.stage_context import StageContext
from toolkit.imagegen.synthetic import RATINGS_FILE, write_synthetic
from toolkit.imagegen.weights import expert_weights
from toolkit.images import ImageStore
from toolkit.runfolder import check_fingerprints, read_json, write_json

log = logging.getLogger(__name__)

SYNTHETIC_FOLDER = "synthetic"
TRAINING = ("train", "judge_train")
SELECTOR_SPLITS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """One split: images, ratings, groups (patients or images), and ratings of each level from the worst."""

    images: int
    ratings: int
    groups: int
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RatingsResult:
    """The result of the stage ``ratings``.

    Attributes:
        rows: rows that were read.
        dropped: rows that cannot be used, by reason.
        images: rated images.
        splits: split -> its counts. ``train`` and ``validation`` are the selector's and the policy's.
        agreement: Krippendorff's alpha of images with several ratings.
        weights: expert level -> weight of its ratings in the loss.
        warnings: what a reader of the figures must know.
        synthetic: whether images and ratings are synthetic.
    """

    rows: int
    dropped: tuple[Dropped, ...]
    images: int
    splits: Mapping[str, SplitCounts]
    agreement: Agreement
    weights: Mapping[int, float]
    warnings: tuple[str, ...]
    synthetic: bool


@dataclass(frozen=True, slots=True)
class PreparedRatings:
    """Ratings by split, with what turns them into tensors.

    Attributes:
        ratings: all ratings.
        splits: ``train``, ``validation`` (selector and policy), ``judge_train``, ``judge_validation`` and ``test``.
        weights: expert level -> weight.
        stores: modality -> image store.
        notices: warnings about splits and weights.
    """

    ratings: Ratings
    splits: Mapping[str, Ratings]
    weights: Mapping[int, float]
    stores: Mapping[str, ImageStore]
    notices: tuple[Problem, ...] = ()

    def images(self, images: Sequence[RatedImage]) -> Tensor:
        """Return images (N, 1 or 3, side, side) in uint8. One channel if all of them are grey."""
        arrays = [np.asarray(self.stores[image.modality].get(image.image)) for image in images]
        if all((array == array[:, :, :1]).all() for array in arrays):
            arrays = [array[:, :, :1] for array in arrays]
        pixels_NHWC = np.stack(arrays) if arrays else np.zeros((0, 1, 1, 1), np.uint8)
        return torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)

    def rows(self, *splits: str) -> RatedImages:
        """Return one row for each rating of some splits. Ratings of weight 0 are left out."""
        pairs = [pair for split in splits for pair in self.splits[split].pairs if self.weights[pair[1].expert_level]]
        distinct = list(dict.fromkeys(image.name for image, _ in pairs))
        by_name = {image.name: image for image, _ in pairs}
        index = {name: row for row, name in enumerate(distinct)}
        images_NCHW = self.images([by_name[name] for name in distinct])
        return RatedImages(
            images_NCHW[[index[image.name] for image, _ in pairs]],
            torch.tensor([rating.level for _, rating in pairs], dtype=torch.long),
            torch.tensor([self.weights[rating.expert_level] for _, rating in pairs], dtype=torch.float32),
            tuple(image.prompt for image, _ in pairs),
            tuple(image.modality for image, _ in pairs),
            tuple(image.group for image, _ in pairs),
        )

    @property
    def trainable(self) -> tuple[RatedImage, ...]:
        """The images of the selector: what a generator may be trained on."""
        return self._images_of(SELECTOR_SPLITS)

    @property
    def unseen(self) -> tuple[RatedImage, ...]:
        """The images that no generator is trained on: those of the judge and of the test split."""
        return self._images_of([split for split in self.splits if split not in SELECTOR_SPLITS])

    def _images_of(self, splits: Sequence[str]) -> tuple[RatedImage, ...]:
        return tuple(image for split in splits for image in self.splits[split].images)


def prepare_ratings(context: StageContext) -> tuple[PreparedRatings, RatingsResult]:
    """Read, check and divide the ratings. The same ratings give the same splits each time.

    Raises:
        DataError: a file or column is missing, too many rows cannot be used, or a training split lacks a rating level.
        ImageError: an image cannot be read.
        RunError: the ratings changed since the run began.
    """
    section, seed = context.section, context.recipe.run.seed
    ratings = load_ratings(section, _synthetic_files(context))
    check_fingerprints(context.run, {"ratings": fingerprint(ratings)})
    stores = image_stores(section, context.recipe.images)
    scan_images(ratings, stores, context.recipe.images.scan)
    parts = partition(ratings, section.judge.fractions.by_split, seed)
    held = {"train": 1 - section.selector.validation, "validation": section.selector.validation}
    own = partition(parts["selector"], held, seed)
    judge = partition(parts["judge"], held, seed_of(context.recipe, "judge"))
    splits = {
        "train": own["train"],
        "validation": own["validation"],
        "judge_train": judge["train"],
        "judge_validation": judge["validation"],
        "test": parts["test"],
    }
    lacking = require_all_levels(splits, TRAINING)
    weights = expert_weights(section, own["train"])
    prepared = PreparedRatings(ratings, splits, weights, stores, (*lacking, *unweighted(ratings, weights)))
    return prepared, _result(context, prepared)


def unweighted(ratings: Ratings, weights: Mapping[int, float]) -> tuple[Problem, ...]:
    """Return a warning for each expert level whose ratings have weight 0.

    Raises:
        DataError: the training split has no rating of an expert level, so that ``precision`` gives it no weight.
    """
    counts = Counter(rating.expert_level for _, rating in ratings.pairs)
    missing = sorted(counts.keys() - weights.keys())
    if missing:
        raise DataError(
            "imagegen.expert_levels_missing",
            "the training split must have ratings of every expert level that occurs",
            place="imagegen.expert_weight",
            value={level: counts[level] for level in missing},
            remedy='Use expert_weight = "linear" or "table", or collect more ratings of these levels.',
        )
    rule = "ratings of an expert level with weight 0 are left out of training and tests"
    return tuple(
        Problem("imagegen.ratings_of_weight_zero", rule, "imagegen.expert_weight", f"{count:,} of level {level}")
        for level, count in sorted(counts.items())
        if not weights[level]
    )


def _synthetic_files(context: StageContext) -> tuple[str, ...] | None:
    """Return the file of synthetic ratings, and write it if it does not exist. None: the recipe's own files."""
    settings, seed = context.section.synthetic, context.recipe.run.seed
    if settings is None:
        return None
    folder = context.run.path / SYNTHETIC_FOLDER
    written = folder / "written.json"  # last, so that its presence means complete data
    wanted = {"seed": seed, "size": context.section.size, "levels": len(context.section.rating_range)}
    wanted |= settings.model_dump()
    if not written.is_file() or read_json(written) != wanted:
        log.info("synthetic data: %d images, %d ratings of each", settings.images, settings.raters_per_image)
        write_synthetic(folder, context.section, seed, network_scores(seed, settings.degraded))
        write_json(written, wanted)
    return (str(folder / RATINGS_FILE),)


def fingerprint(ratings: Ratings) -> str:
    """Return a digest of all ratings and of the contents of their images."""
    digest = hashlib.blake2b(digest_size=16)
    for image in ratings.images:
        levels = [(rating.level, rating.expert_level, rating.rater) for rating in image.ratings]
        facts = (image.name, image.modality, image.prompt, image.patient, image.image.part, levels)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        digest.update(_content(image.image.path))
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _result(context: StageContext, prepared: PreparedRatings) -> RatingsResult:
    ratings = prepared.ratings
    section, seed = context.section, context.recipe.run.seed
    return RatingsResult(
        rows=ratings.rows,
        dropped=ratings.dropped,
        images=len(ratings.images),
        splits={name: _counts(split) for name, split in prepared.splits.items()},
        agreement=agreement(ratings, section.judge.bootstrap, seed),
        weights=prepared.weights,
        warnings=tuple(map(str, prepared.notices)),
        synthetic=section.synthetic is not None,
    )


def _counts(ratings: Ratings) -> SplitCounts:
    groups = len({image.group for image in ratings.images})
    return SplitCounts(len(ratings.images), ratings.count, groups, ratings.level_counts())
