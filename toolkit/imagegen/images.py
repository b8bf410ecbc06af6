"""Images of [imagegen]: one policy for each modality, the same for selector, policy, judge and generator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit import recipe
from toolkit.imagegen.ratings import Ratings
from toolkit.images import ImagePolicy, ImageStore, ScanReport, scan
from toolkit.images.policy import FIXED_WINDOWS
from toolkit.images.ref import ImageRef
from toolkit.images.scan import ScanMode
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import FixedWindow
from toolkit.runfolder.cache import cache_folder


def image_policies(section: Imagegen, images: recipe.Images) -> Mapping[str, ImagePolicy]:
    """Return the image policy of each modality.

    Args:
        section: size, square and windows.
        images: the resampling filter and the pixel limit.
    """
    return {modality: _policy(section, images, section.windows.get(modality)) for modality in section.modalities}


def image_stores(section: Imagegen, images: recipe.Images, roots: Sequence[Path] = ()) -> Mapping[str, ImageStore]:
    """Return the image store of each modality. Modalities with the same policy share one store.

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
        stores: from ``image_stores``.
        mode: as ``images.scan`` in the recipe.

    Raises:
        ImageError: images cannot be read. All of them are reported together.
        MissingExtraError: there is a DICOM file, and pydicom is not installed.
    """
    by_store: dict[ImageStore, list[ImageRef]] = {}
    for image in ratings.images:
        by_store.setdefault(stores[image.modality], []).append(image.image)
    reports = tuple(scan(refs, store, mode) for store, refs in by_store.items())
    bad = tuple(one for report in reports for one in report.bad)
    ScanReport(mode, sum(report.checked for report in reports), bad).raise_if_bad()
    return reports


def _policy(section: Imagegen, images: recipe.Images, window: FixedWindow | None) -> ImagePolicy:
    plain = ImagePolicy(section.size, resample=images.resample, max_pixels=images.max_pixels, square=section.square)
    if window is None:
        return plain
    centre, width = FIXED_WINDOWS[window.preset] if window.preset else (window.centre, window.width)
    return replace(plain, window="fixed", centre=centre, width=width)
