"""Images of [imagegen]: one policy for each modality, the same for selector, policy, judge and generator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit import recipe
from toolkit.cache import cache_folder
from toolkit.images import ImagePolicy, ImageStore
from toolkit.images.policy import FIXED_WINDOWS
from toolkit.recipe.imagegen import FixedWindow, Imagegen


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


def _policy(section: Imagegen, images: recipe.Images, window: FixedWindow | None) -> ImagePolicy:
    plain = ImagePolicy(section.size, resample=images.resample, max_pixels=images.max_pixels, square=section.square)
    if window is None:
        return plain
    centre, width = FIXED_WINDOWS[window.preset] if window.preset else (window.centre, window.width)
    return replace(plain, window="fixed", centre=centre, width=width)
