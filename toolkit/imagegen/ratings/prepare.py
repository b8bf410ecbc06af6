"""The stage ``ratings``: read, scan, divide and weight the ratings, and count everything that is left out."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit import recipe
from toolkit.data import RowCount
from toolkit.errors import DataError, Problem
from toolkit.imagegen.context import StageContext
from toolkit.imagegen.ratings.experts import Agreement, agreement, expert_weights
from toolkit.imagegen.ratings.load import RatedImage, Ratings, load_ratings
from toolkit.imagegen.ratings.oracle import network_scores
from toolkit.imagegen.ratings.splits import SELECTOR_SPLITS, TRAINING, require_all_levels, split_ratings
from toolkit.imagegen.ratings.synthetic import RATINGS_FILE, write_synthetic
from toolkit.imagegen.scorers.fitting import RatedImages
from toolkit.images import ImagePolicy, ImageStore, ScanReport, scan
from toolkit.images.ref import ImageRef
from toolkit.images.scan import ScanMode
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import FixedWindow
from toolkit.recipe.windows import FIXED_WINDOWS
from toolkit.runfolder import check_fingerprints, read_saved, write_json
from toolkit.runfolder.cache import cache_folder

log = logging.getLogger(__name__)

SYNTHETIC_FOLDER = "synthetic"


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
        warnings: limits of the ratings that affect the figures.
        synthetic: whether images and ratings are synthetic.
    """

    rows: int
    dropped: tuple[RowCount, ...]
    images: int
    splits: Mapping[str, SplitCounts]
    agreement: Agreement
    weights: Mapping[int, float]
    warnings: tuple[str, ...]
    synthetic: bool


@dataclass(frozen=True, slots=True)
class PreparedRatings:
    """Ratings by split, with the image stores that load their tensors.

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
        """The images of the selector, on which a generator may be trained."""
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
    section = context.section
    ratings = load_ratings(section, _synthetic_files(context))
    check_fingerprints(context.run, {"ratings": fingerprint(ratings)})
    stores = image_stores(section, context.recipe.images)
    scan_images(ratings, stores, context.recipe.images.scan)
    splits = split_ratings(context.recipe, section, ratings)
    lacking = require_all_levels(splits, TRAINING)
    weights = expert_weights(section, splits["train"])
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


def image_policies(section: Imagegen, images: recipe.Images) -> Mapping[str, ImagePolicy]:
    """Return the image policy of each modality.

    Args:
        section: size, square and windows.
        images: the resampling filter and the pixel limit.
    """
    return {modality: _image_policy(section, images, section.windows.get(modality)) for modality in section.modalities}


def image_stores(section: Imagegen, images: recipe.Images, roots: Sequence[Path] = ()) -> Mapping[str, ImageStore]:
    """Return the image store of each modality. Modalities with the same policy have the same store.

    Args:
        section: size, square and windows.
        images: resampling filter, pixel limit and caches. An unreadable image always raises: a rating without its image
            cannot be used.
        roots: folders that every image must be in.
    """
    disk = cache_folder() / "images" if images.disk_cache else None
    policies = image_policies(section, images)
    stores = {
        policy: ImageStore(policy, "stop", images.memory_cache_mb, disk, roots) for policy in set(policies.values())
    }
    return {modality: stores[policy] for modality, policy in policies.items()}


def scan_images(ratings: Ratings, stores: Mapping[str, ImageStore], mode: ScanMode = "auto") -> tuple[ScanReport, ...]:
    """Check every rated image before training, and return the report of each store.

    Args:
        ratings: the rated images.
        stores: the stores from ``image_stores``.
        mode: the value of ``images.scan`` in the recipe.

    Raises:
        ImageError: images cannot be read. All of them are reported together.
        MissingExtraError: there is a DICOM file, and pydicom is not installed.
    """
    by_store: dict[ImageStore, list[ImageRef]] = {}
    for image in ratings.images:
        by_store.setdefault(stores[image.modality], []).append(image.image)
    row_of = {image.image: image.ratings[0].place for image in ratings.images}
    reports = tuple(scan(refs, store, mode).with_rows(row_of) for store, refs in by_store.items())
    bad = tuple(one for report in reports for one in report.bad)
    ScanReport(mode, sum(report.checked for report in reports), bad).raise_if_bad()
    return reports


def fingerprint(ratings: Ratings) -> str:
    """Return a digest of all ratings and of the contents of their images."""
    digest = hashlib.blake2b(digest_size=16)
    for image in ratings.images:
        levels = [(rating.level, rating.expert_level, rating.rater) for rating in image.ratings]
        facts = (image.name, image.modality, image.prompt, image.patient, image.image.part, levels)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        digest.update(_content(image.image.path))
    return digest.hexdigest()


def _synthetic_files(context: StageContext) -> tuple[str, ...] | None:
    """Return the file of synthetic ratings, and write it if it does not exist. None: the recipe's own files."""
    settings, seed = context.section.synthetic, context.recipe.run.seed
    if settings is None:
        return None
    folder = context.run.path / SYNTHETIC_FOLDER
    written = folder / "written.json"  # last, so that its presence means complete data
    wanted = {"seed": seed, "size": context.section.size, "levels": len(context.section.rating_range)}
    wanted |= settings.model_dump()
    if read_saved(written) != wanted:
        log.info("synthetic data: %d images, %d ratings of each", settings.images, settings.raters_per_image)
        write_synthetic(folder, context.section, seed, network_scores(seed, settings.degraded))
        write_json(written, wanted)
    return (str(folder / RATINGS_FILE),)


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


def _image_policy(section: Imagegen, images: recipe.Images, window: FixedWindow | None) -> ImagePolicy:
    plain = ImagePolicy(section.size, resample=images.resample, max_pixels=images.max_pixels, square=section.square)
    if window is None:
        return plain
    centre, width = FIXED_WINDOWS[window.preset] if window.preset else (window.centre, window.width)
    return replace(plain, window="fixed", centre=centre, width=width)
