"""Features of images: computed once for a frozen tower, and in each batch for a trained one."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from toolkit.imagegen.rated import as_floats
from toolkit.imagegen.towers import Tower

Features = Callable[[Tensor, torch.Generator], Tensor]
"""Features of some training rows, given as indices. The generator is for augmentation."""


def training_features(tower: Tower, images_NCHW: Tensor, augment: bool) -> tuple[Features, Tensor]:
    """Return a function from rows to their features, and the features_NF of all images before training."""
    plain_NF, device = all_features(tower, images_NCHW), tower.mean_C.device
    if tower.frozen:
        mirrored_VNF = [all_features(tower, images_NCHW.flip(-1))] if augment else []
        return _views(torch.stack([plain_NF, *mirrored_VNF])), plain_NF

    def features(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        batch = as_floats(images_NCHW[rows_B])
        found: Tensor = tower((_augment(batch, generator) if augment else batch).to(device))
        return found

    return features, plain_NF


def held_out_features(tower: Tower, images_NCHW: Tensor) -> Callable[[], Tensor]:
    """Return a function that gives features_NF by the tower's present parameters. A frozen tower runs once."""
    if tower.frozen:
        fixed_NF = all_features(tower, images_NCHW)
        return lambda: fixed_NF
    return lambda: all_features(tower, images_NCHW)


@torch.no_grad()
def all_features(tower: Tower, images_NCHW: Tensor) -> Tensor:
    """Return features_NF of all images in eval mode, a batch at a time.

    A frozen tower caches the features of images in uint8. Those are the rated images, and each is encoded once.
    """
    was_training = tower.training
    tower.eval()
    is_cached = tower.frozen and images_NCHW.dtype == torch.uint8 and len(images_NCHW) > 0
    features_NF = (_cached if is_cached else _encoded)(tower, images_NCHW)
    tower.train(was_training)
    return features_NF


def _encoded(tower: Tower, images_NCHW: Tensor) -> Tensor:
    device = tower.mean_C.device
    return torch.cat([tower(as_floats(batch).to(device)) for batch in images_NCHW.split(tower.batch_size)])


def _cached(tower: Tower, images_NCHW: Tensor) -> Tensor:
    keys = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images_NCHW]
    new: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if key not in tower.known:
            new.setdefault(key, row)
    if new:
        found_NF = _encoded(tower, images_NCHW[list(new.values())])
        tower.known.update(zip(new, found_NF.cpu(), strict=True))
    return torch.stack([tower.known[key] for key in keys]).to(tower.mean_C.device)


def _views(features_VNF: Tensor) -> Features:
    """Return a function that draws one of the views of each row: the image or its mirror image."""

    def features(rows_B: Tensor, generator: torch.Generator) -> Tensor:
        views_B = torch.randint(0, len(features_VNF), (len(rows_B),), generator=generator)
        return features_VNF[views_B, rows_B]

    return features


def _augment(images_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images from left to right, and shift the batch by at most 1/16 of the side.

    Neither changes the quality that a rating is about.
    """
    mirror_N = torch.rand(len(images_NCHW), generator=generator) < 0.5
    images_NCHW = torch.where(mirror_N[:, None, None, None], images_NCHW.flip(-1), images_NCHW)
    side = images_NCHW.shape[-1]
    reach = side // 16
    if not reach:
        return images_NCHW
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    padded = pad(images_NCHW, (reach, reach, reach, reach), mode="reflect")
    return padded[:, :, top : top + side, left : left + side]
